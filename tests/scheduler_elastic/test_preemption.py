"""When a running job gives way."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.elastic.settings import ElasticSettings
from tests.scheduler.game import D, E, V, of
from tests.scheduler_elastic.play import Play

LONG, SHORT = 2048, 512
STEP = 0.633


def running(**request: object) -> Play:
    """A long job in its second step on the only dit server."""
    game = Play(ElasticSettings(elastic_roles=False, admission_quantile=0.5))
    game.serve("encoder", {E})
    game.serve("dit", {D})
    game.serve("decoder", {V})
    game.want("long", LONG, **request)  # type: ignore[arg-type]
    game.waiting_dits("long")
    game.fetched("long/d0")
    game.started("long/d0")
    game.at(2 * STEP)
    game.progressed("long/d0", 2, 25, STEP)
    return game


def preempted(game: Play, name: str, side: int = SHORT, **request: object) -> bool:
    game.want(name, side, **request)  # type: ignore[arg-type]
    actions = game.through(f"{name}/e")
    return any(run.preempt for run in of(do.Run, actions) if run.role is D)


def test_for_a_much_shorter_job() -> None:
    game = running()
    assert preempted(game, "short")
    assert game.jobs_on("dit") == ["long/d0", "short/d0"]


@pytest.mark.parametrize("side", [1536, 2048])
def test_not_for_one_of_like_length(side: int) -> None:
    assert not preempted(running(), "other", side)


def test_only_one_job_is_paused_and_only_once() -> None:
    game = running()
    assert preempted(game, "short")
    assert not preempted(game, "second")
    game.post(ev.JobPaused(game.where["long/d0"], game.epochs["long/d0"], 3))
    game.through("short/d0")
    game.started("long/d0")
    assert not preempted(game, "third")


def test_not_for_another_tenant_nor_a_lower_priority() -> None:
    assert not preempted(running(), "short", tenant="other")
    assert not preempted(running(priority=1), "short")


def test_not_where_the_running_job_would_miss_its_deadline_for_it() -> None:
    assert not preempted(running(deadline=15.9 + 0.6), "short")


def test_not_just_before_the_device_is_free() -> None:
    game = running()
    game.at(15.5)
    game.progressed("long/d0", 24, 25, STEP)
    assert not preempted(game, "short")


# --- where a server holds every role ----------------------------------------------------------------------------------


def fused(**settings: object) -> Play:
    """A long job in its second step on a server that holds every role."""
    game = Play(ElasticSettings(elastic_roles=False, **settings))  # type: ignore[arg-type]
    game.serve("one")
    game.want("long", LONG)
    begin(game, "long")
    return game


def begin(game: Play, name: str) -> None:
    game.through(f"{name}/e")
    game.fetched(f"{name}/d0")
    game.started(f"{name}/d0")
    game.at(game.now + 2 * STEP)
    game.progressed(f"{name}/d0", 2, 25, STEP)


def pauses(actions: list[Action]) -> list[str]:
    return [run.job for run in of(do.Run, actions) if run.preempt]


def test_a_device_taken_for_the_first_stage_is_kept_for_all() -> None:
    game = fused()
    (run,) = of(do.Run, game.want("short", SHORT))
    assert (run.role, run.preempt, run.keep_seconds) == (E, True, ElasticSettings().keep_seconds)
    assert pauses(game.through("short/e")) == ["short/d0"]
    assert pauses(game.through("short/d0")) == ["short/v0"]
    assert pauses(game.through("short/v0")) == []


@pytest.mark.parametrize("side", [1536, 2048])
def test_what_counts_is_all_that_the_request_needs_there(side: int) -> None:
    """Its encoder job alone is short enough."""
    assert pauses(fused().want("other", side)) == []


def test_a_job_that_waited_long_is_left_alone() -> None:
    """By aging it has the better key, although more of it remains."""
    game = fused(aging=0.1)
    game.at(200.0)
    game.progressed("long/d0", 3, 25, STEP)
    assert pauses(game.want("short", SHORT)) == []


def test_it_is_tried_again_once_the_pace_of_the_running_job_is_known() -> None:
    game = Play()
    game.serve("one")
    game.want("long", LONG)
    game.through("long/e")
    game.fetched("long/d0")
    game.started("long/d0")
    game.at(game.now + STEP)
    assert pauses(game.want("short", SHORT)) == []
    assert pauses(game.progressed("long/d0", 1, 25, STEP)) == ["short/e"]


def test_a_server_between_two_stages_is_not_about_to_be_free() -> None:
    """What its request needs after the encoder counts; the decoder is the end of it."""
    for last, gives_way in (("second/e", True), ("second/v0", False)):
        game = Play()
        game.serve("two")
        game.want("second", LONG)
        game.through(*{"second/e": (), "second/v0": ("second/e", "second/d0")}[last])
        game.serve("one")
        game.want("long", LONG)
        begin(game, "long")
        game.fetched(last)
        game.started(last)
        assert bool(pauses(game.want("short", SHORT))) is gives_way
