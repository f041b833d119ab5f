"""What requests under way are told of their place: against the order and the times in which they are then served."""

from __future__ import annotations

import pytest

from scheduler.elastic.settings import ElasticSettings, Ordering
from scheduler.policy import Policies
from scheduler.standing import LINE_SECONDS, Standing
from tests.scheduler.game import D, E, Game, V
from tests.scheduler_elastic.play import Play
from wire.types import RequestId

SIDES = {"big": 2048, "small": 512, "middle": 1024, "large": 1536, "tiny": 256}


def standing(game: Game, name: str) -> Standing:
    found = game.scheduler.standing(RequestId(name), game.now)
    assert found is not None, f"{name} is not under way"
    return found


def play(tenant: str = "", **settings: object) -> Play:
    """A server for each stage; that of the dit is busy with ``first``."""
    game = Play(ElasticSettings(elastic_roles=False, preemption=False, **settings))  # type: ignore[arg-type]
    for name, role in (("encoder", E), ("dit", D), ("decoder", V)):
        game.serve(name, {role})
    add(game, "first", tenant=tenant)
    return game


def add(game: Play, name: str, side: int = 1024, tenant: str = "") -> None:
    """A request whose encoder is done."""
    game.want(name, side, tenant=tenant)
    game.waiting_dits(name)


def told_and_done(game: Play, names: list[str]) -> tuple[list[str], list[str]]:
    """``names`` by the number of requests ahead of each, and in the order in which they are served."""
    told = {name: standing(game, name).ahead for name in names}
    assert sorted(told.values()) == list(range(len(names))), told  # type: ignore[type-var]
    return sorted(names, key=lambda name: told[name] or 0), game.serve_in_turn(len(names) + 1)[1:]


@pytest.mark.parametrize("ordering", Ordering)
def test_requests_are_served_in_the_order_in_which_they_are_told_to_be(ordering: Ordering) -> None:
    game = play(ordering=ordering)
    for name, side in SIDES.items():
        game.now += 0.01
        add(game, name, side)
    told, done = told_and_done(game, list(SIDES))
    assert told == done
    assert (done == list(SIDES)) == (ordering is Ordering.FIRST_COME)


def test_tenants_take_turns_by_their_shares_in_what_they_are_told_too() -> None:
    game = play(tenant="calm", tenant_shares={"calm": 1.0, "flood": 2.0})
    for number in range(6):
        game.now += 0.01
        add(game, f"flood{number}", 1024 + 64 * number, tenant="flood")
    for number in range(3):
        game.now += 0.01
        add(game, f"calm{number}", 1088 + 128 * number, tenant="calm")
    names = [*(f"flood{number}" for number in range(6)), *(f"calm{number}" for number in range(3))]
    told, done = told_and_done(game, names)
    assert told == done
    assert {name.rstrip("012345") for name in done[:4]} == {"calm", "flood"}


def test_whoever_came_after_the_line_was_drawn_up_finds_a_place_in_it() -> None:
    game = play(tenant="a")
    for name, side in (("small", 512), ("big", 2048)):
        add(game, name, side, tenant="a")
    assert [standing(game, name).ahead for name in ("small", "big")] == [0, 1]
    add(game, "middle", 1024, tenant="a")
    assert standing(game, "middle").ahead == 1, "behind the small one"
    add(game, "other", 1024, tenant="b")
    assert standing(game, "other").ahead == 1, "its tenant begins where the other stands, and had the encoder since"
    game.now += LINE_SECONDS
    told, done = told_and_done(game, ["small", "middle", "big", "other"])
    assert told == done


def test_those_whose_encoder_has_not_run_stand_in_the_same_line() -> None:
    game = play()
    add(game, "middle")
    for name, side in (("encoding", 512), ("fetching", 512), ("small", 512), ("big", 2048)):
        game.want(name, side)
    assert standing(game, "encoding").ahead is None, "the encoder has it"
    assert standing(game, "fetching").ahead is None, "and this one next"
    assert [standing(game, name).ahead for name in ("small", "middle", "big")] == [0, 1, 2]


def test_no_place_for_what_a_server_has_and_for_what_is_over_or_unknown() -> None:
    game = play()
    assert standing(game, "first").ahead is None
    game.through("first/d0", "first/v0")
    assert standing(game, "first").ahead is None, "its picture is on its way"
    game.taken("first/v0")
    for name in ("first", "nobody"):
        assert game.scheduler.standing(RequestId(name), game.now) is None


def test_seconds_left_begin_with_the_prediction_and_fall_with_the_work() -> None:
    game = Play(ElasticSettings(elastic_roles=False, preemption=False))
    game.serve("only", limit=1)
    predicted = {}
    for number in range(4):
        (admitted,) = [action for action in game.want(f"r{number}") if type(action).__name__ == "Admit"]
        predicted[f"r{number}"] = admitted.predicted_seconds  # type: ignore[attr-defined]
    for name, seconds in predicted.items():
        assert standing(game, name).seconds_left == pytest.approx(seconds, rel=0.05), name
    game.through("r0/e")
    game.fetched("r0/d0")
    game.started("r0/d0")
    before = {name: standing(game, name).seconds_left for name in predicted}
    game.now += 2.0
    for name, seconds in before.items():
        assert standing(game, name).seconds_left == pytest.approx(seconds - 2.0, rel=0.05), name


def test_several_pictures_wait_until_a_server_has_one_of_them() -> None:
    game = Game()
    game.join("encoder", {E})
    game.ask("r", images=3)
    game.through("r/e")
    assert standing(game, "r").ahead == 0
    game.join("dit", {D}, limit=1)
    assert standing(game, "r").ahead is None
    assert standing(game, "r").seconds_left > 0


def test_without_elastic_policies_the_line_is_by_priority_and_arrival() -> None:
    game = Game(Policies())
    game.join("encoder", {E}, limit=0)
    for name, priority in (("a", 0), ("b", 1), ("c", 0)):
        game.ask(name, priority=priority)
    assert [standing(game, name).ahead for name in "bac"] == [0, 1, 2]
