"""A request that took the device from another's job keeps it through its stages."""

from __future__ import annotations

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.policy import Downstream, Policies
from scheduler.state import Job, Server
from scheduler.transitions import JobState
from scheduler.view import View
from tests.scheduler.game import ALL, D, E, Game, V, of, runs
from wire.types import RequestId, ServerId

KEEP = 0.05
NO_PREFETCH = -1.0


class OneVictim:
    """The job ``long/d0`` gives way to everything, once."""

    keep_seconds = KEEP

    def __init__(self) -> None:
        self.is_over = False

    def victim(self, job: Job, view: View, now: float) -> Server | None:
        attempt = next((job.attempt for name, job in view.jobs.items() if name == "long/d0"), None)
        if self.is_over or attempt is None or attempt.job.state is not JobState.RUNNING:
            return None
        self.is_over = True
        return attempt.server

    def may_yield(self, server: Server, job: Job, view: View, now: float) -> bool:
        return not self.is_over


def computing(**short: int) -> Game:
    """A server with every role paused ``long`` for the encoder of ``short``."""
    game = Game(Policies(preemption=OneVictim(), placement=Downstream(NO_PREFETCH)))
    game.join("one")
    game.ask("long")
    game.through("long/e")
    game.fetched("long/d0")
    game.started("long/d0")
    actions = game.ask("short", **short)
    assert promised(actions) == [("short/e", True, KEEP)]
    game.post(ev.JobPaused(ServerId("one"), game.epochs["long/d0"], 3))
    return game


def promised(actions: list[Action]) -> list[tuple[str, bool, float]]:
    return [(run.job, run.preempt, run.keep_seconds) for run in of(do.Run, actions)]


def test_it_goes_on_stage_by_stage_and_then_the_paused_job_resumes() -> None:
    game = computing()
    game.ask("third")  # it came later, and waits
    assert promised(game.through("short/e")) == [("short/d0", True, KEEP)]
    assert promised(game.through("short/d0")) == [("short/v0", True, 0.0)]
    assert promised(game.through("short/v0")) == []
    game.started("long/d0")
    assert runs(game.through("long/d0")) == [("long/v0", "one")]


def test_every_picture_of_it_the_furthest_first() -> None:
    game = computing(images=2)
    assert promised(game.through("short/e")) == [("short/d0", True, KEEP)]
    assert promised(game.through("short/d0")) == [("short/v0", True, KEEP)]
    assert promised(game.through("short/v0")) == [("short/d1", True, KEEP)]
    assert promised(game.through("short/d1")) == [("short/v1", True, 0.0)]
    assert promised(game.through("short/v1")) == []


def test_pictures_that_other_servers_took_are_left_to_them() -> None:
    game = computing(images=2)
    game.ask("third", priority=-1)
    game.join("two", {D})
    assert set(runs(game.through("short/e"))) == {("short/d0", "one"), ("short/d1", "two")}
    assert promised(game.through("short/d0")) == [("short/v0", True, KEEP)]  # the other picture may yet come here
    game.through("short/d1")
    assert promised(game.through("short/v0")) == [("short/v1", True, 0.0)]


def test_the_device_is_not_kept_for_stages_that_it_does_not_hold() -> None:
    game = Game(Policies(preemption=OneVictim()))
    game.join("one", {E, D})
    game.join("two", {V})
    game.ask("long")
    game.through("long/e")
    game.fetched("long/d0")
    game.started("long/d0")
    game.ask("short")
    assert promised(game.through("short/e")) == [("short/d0", True, 0.0)]
    assert runs(game.through("short/d0")) == [("short/v0", "two")]
    assert game.jobs_on("one") == ["long/d0"]


def test_nothing_goes_on_once_the_server_is_leaving_or_gives_up_the_role() -> None:
    for change in (ev.ServerLeaving(ServerId("one")), ev.RolesOrdered(ServerId("one"), frozenset({E}))):
        game = computing()
        game.post(change)
        assert promised(game.through("short/e")) == []
        assert runs(game.join("two")) == [("short/d0", "two")]


def test_a_lost_server_loses_both_and_another_starts_anew() -> None:
    game = computing()
    game.through("short/e")
    game.join("two", ALL)
    begun = runs(game.lose("one"))
    assert begun
    assert set(begun) <= {("long/e", "two"), ("short/e", "two")}
    game.join("one")  # the new one has nothing to go on with
    assert game.scheduler.view.servers[ServerId("one")].chained is None


def test_a_cancelled_request_leaves_the_device_to_the_paused_job() -> None:
    game = computing()
    game.through("short/e")
    game.ask("third")
    game.post(ev.RequestCancelled(RequestId("short")))
    assert promised(game.cancelled("short/d0")) == []
    assert game.jobs_on("one") == ["long/d0"]
    assert game.scheduler.view.servers[ServerId("one")].chained is None


def test_a_job_that_failed_does_not_go_on() -> None:
    game = computing()
    game.through("short/e")
    assert promised(game.failed("short/d0")) == []
    assert game.jobs_on("one") == ["long/d0"]


def test_without_a_paused_job_the_order_decides_again() -> None:
    game = computing()
    game.ask("third", priority=1)
    game.post(ev.RequestCancelled(RequestId("long")))
    game.cancelled("long/d0")
    assert not any(run.preempt for run in of(do.Run, game.through("short/e")))
