"""Which waiting job goes next: tenant, deadline, bypass bound, key."""

from __future__ import annotations

import pytest

from scheduler.elastic.settings import ElasticSettings, Ordering
from tests.scheduler.game import D, E, V
from tests.scheduler_elastic.play import Play

LONG, SHORT = 2048, 512
"""15.8 s and 0.9 s on an H100 with 25 steps."""


def play(tenant: str = "", **settings: object) -> Play:
    """One dit server, busy with ``first``."""
    game = Play(ElasticSettings(elastic_roles=False, preemption=False, **settings))  # type: ignore[arg-type]
    game.serve("encoder", {E})
    game.serve("decoder", {V})
    game.serve("dit", {D})
    game.want("first", tenant=tenant)
    game.waiting_dits("first")
    return game


def add(game: Play, name: str, side: int = 1024, **request: object) -> None:
    game.want(name, side, **request)  # type: ignore[arg-type]
    game.waiting_dits(name)


def test_the_shortest_goes_first() -> None:
    game = play()
    add(game, "long", LONG)
    add(game, "middle")
    add(game, "short", SHORT)
    assert game.serve_in_turn(4) == ["first", "short", "middle", "long"]


def test_aging_puts_an_older_job_before_much_younger_ones() -> None:
    game = play(aging=1.0)
    add(game, "middle")
    game.now = 1.0
    add(game, "short", SHORT)
    game.now = 10.0
    add(game, "late", SHORT)
    assert game.serve_in_turn(4) == ["first", "short", "middle", "late"]


def test_first_come_is_a_setting() -> None:
    game = play(ordering=Ordering.FIRST_COME)
    for number, (name, side) in enumerate((("long", LONG), ("middle", 1024), ("short", SHORT)), 1):
        game.now = float(number)
        add(game, name, side)
    assert game.serve_in_turn(4) == ["first", "long", "middle", "short"]


def test_a_job_that_would_miss_its_deadline_goes_first_but_a_hopeless_one_does_not() -> None:
    game = play(admission_quantile=0.5)
    add(game, "urgent", LONG, deadline=35.0)
    add(game, "short", SHORT)
    add(game, "shorter", SHORT, deadline=60.0)
    assert game.serve_in_turn(2, seconds=8.0) == ["first", "short"]
    assert game.jobs_on("dit") == ["urgent/d0"]
    late = play(admission_quantile=0.5)
    add(late, "hopeless", LONG, deadline=35.0)
    add(late, "short", SHORT)
    assert late.serve_in_turn(2, seconds=20.0) == ["first", "short"]


def test_priorities_count_within_a_tenant() -> None:
    game = play()
    add(game, "usual", SHORT)
    add(game, "high", LONG, priority=1)
    assert game.serve_in_turn(3) == ["first", "high", "usual"]


@pytest.mark.parametrize(("patience", "overtaken"), [(0.1, 2), (0.2, 4)])
def test_later_jobs_overtake_by_the_bound_and_no_more(patience: float, overtaken: int) -> None:
    """15.8 s × 0.1 is what two jobs of 0.9 s take."""
    game = play(patience=patience, aging=0.0)
    add(game, "long", LONG)
    order = []
    for number in range(20):
        add(game, f"short{number}", SHORT)
        order += game.serve_in_turn(1)
        if order[-1] == "long":
            break
    assert order.index("long") - 1 == overtaken


def test_the_bound_is_in_proportion_to_what_waited_before() -> None:
    game = play(patience=0.0, bypass_share=0.5, aging=0.0)
    for number in range(4):
        add(game, f"older{number}", SHORT)
    add(game, "long", LONG)
    for number in range(8):
        add(game, f"younger{number}", SHORT)
    order = game.serve_in_turn(10)
    assert 2 <= sum(name.startswith("younger") for name in order[: order.index("long")]) <= 4


def test_tenants_take_turns_by_device_seconds() -> None:
    game = play()
    for number in range(6):
        add(game, f"flood{number}", tenant="flood")
    add(game, "calm0", tenant="calm")
    add(game, "calm1", tenant="calm")
    order = game.serve_in_turn(6)[1:]
    assert sum(name.startswith("calm") for name in order[:4]) == 2


def test_a_tenant_with_a_larger_share_gets_more() -> None:
    game = play(tenant_shares={"a": 3.0})
    for number in range(6):
        add(game, f"a{number}", tenant="a")
        add(game, f"b{number}", tenant="b")
    order = [name[0] for name in game.serve_in_turn(9)[1:]]
    assert order.count("a") == pytest.approx(6, abs=1)


def test_idleness_earns_nothing() -> None:
    game = play("busy")
    for number in range(6):
        add(game, f"busy{number}", tenant="busy")
    assert len(game.serve_in_turn(4)) == 4
    for number in range(4):
        add(game, f"back{number}", tenant="back")
    order = game.serve_in_turn(5)
    assert sum(name.startswith("busy") for name in order[1:]) >= 2  # not all four of the other first


def test_a_tenant_with_next_to_no_share_gets_what_nobody_else_wants() -> None:
    """Batches run as such a tenant (``gateway.shell.assembly.BACKGROUND_SHARE``)."""
    game = play(tenant="~batches", tenant_shares={"~batches": 1e-6})
    for number in range(4):
        add(game, f"batch{number}", SHORT, tenant="~batches")
    assert game.serve_in_turn(2) == ["first", "batch0"], "nobody else is there"
    for number in range(3):
        add(game, f"user{number}", LONG, tenant="user")
    add(game, "other", tenant="other")
    order = game.serve_in_turn(7)
    assert order[0] == "batch1", "it has the device"
    assert set(order[1:5]) == {"user0", "user1", "user2", "other"}
    assert order[5:] == ["batch2", "batch3"]


def test_such_a_tenant_hardly_counts_in_the_predictions_of_others() -> None:
    alone, beside = play(), play(tenant_shares={"~batches": 1e-6})
    for number in range(20):
        add(beside, f"batch{number}", LONG, tenant="~batches")
    predicted = [game.want("user", tenant="user")[0].predicted_seconds for game in (alone, beside)]
    assert predicted[1] == pytest.approx(predicted[0], rel=0.05)
