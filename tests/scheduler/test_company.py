"""Servers with several roles whose groups let jobs of other roles in between two steps."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.policy import OneByOne, Policies
from scheduler.state import Job, Server
from scheduler.view import View
from tests.scheduler.game import ALL, D, E, Game, V, of, runs
from tests.simulation.schedules import Impatient, Together
from wire.types import RequestId, Role, ServerId


class Unyielding(Impatient):
    """No job that has the device alone pauses for another."""

    def victim(self, job: Job, view: View, now: float) -> Server | None:
        return None


def crowded(*, roles: frozenset[Role] = ALL, together: int = 4, limit: int = 100, interrupts: bool = True) -> Game:
    """One server, which denoises for the fast request "a"."""
    preemption = Unyielding() if interrupts else None
    game = Game(Policies(batching=Together(), preemption=preemption))
    if roles != ALL:
        game.join("rest", ALL - roles)
    game.join("one", roles, limit, together=together)
    game.ask("a", exact=False)
    game.through("a/e")
    begin(game, "a")
    return game


def begin(game: Game, name: str) -> None:
    game.fetched(f"{name}/d0")
    game.started(f"{name}/d0")


def pause(game: Game, *names: str) -> None:
    for name in names:
        game.post(ev.JobPaused(ServerId("one"), game.epochs[f"{name}/d0"], 1))


def test_an_encoder_job_is_let_in_and_its_denoising_joins() -> None:
    game = crowded()
    (encoding,) = of(do.Run, game.ask("b", exact=False))
    assert (encoding.role, encoding.preempt, encoding.share, encoding.keep_seconds) == (E, True, False, 0.0)
    pause(game, "a")
    (denoising,) = of(do.Run, game.through("b/e"))
    assert (denoising.job, denoising.preempt, denoising.share) == ("b/d0", False, True)
    game.started("a/d0")
    begin(game, "b")
    assert [attempt.company for attempt in game.scheduler.view.servers[ServerId("one")].attempts.values()] == [2, 2]


@pytest.mark.parametrize(("level", "share"), [("", True), ("low", False)])
def test_jobs_whose_steps_reuse_what_they_computed_have_the_device_alone(level: str, share: bool) -> None:
    game = Game(Policies(batching=Together()))
    game.join("one", ALL, together=4)
    game.ask("a", exact=False, step_cache=level)
    (run,) = of(do.Run, game.through("a/e"))
    assert (run.job, run.share) == ("a/d0", share)


def test_one_at_a_time_each_followed_by_what_it_was_for() -> None:
    game = crowded()
    game.ask("b", exact=False)
    assert runs(game.ask("c", exact=False)) == []
    pause(game, "a")
    assert runs(game.through("b/e")) == [("b/d0", "one")]
    assert runs(game.started("a/d0")) == []
    game.fetched("b/d0")
    assert runs(game.started("b/d0")) == [("c/e", "one")]


def test_a_decoder_job_is_let_in_where_others_of_the_group_go_on() -> None:
    game = crowded()
    game.ask("b", exact=False)
    game.through("b/e")
    begin(game, "b")
    (decoding,) = of(do.Run, game.done("a/d0"))
    assert (decoding.job, decoding.preempt, decoding.keep_seconds) == ("a/v0", True, 0.0)
    pause(game, "b")
    assert runs(game.through("a/v0")) == []
    game.started("b/d0")
    assert runs(game.done("b/d0")) == [("b/v0", "one")]


@pytest.mark.parametrize("roles", [{E, D}, {D, V}])
def test_servers_with_two_roles_let_in_those_of_the_other(roles: set[Role]) -> None:
    game = crowded(roles=frozenset(roles))
    game.ask("b", exact=False)
    game.through("b/e")
    begin(game, "b")
    assert game.where["b/e"] == ("one" if E in roles else "rest")
    game.done("a/d0")
    assert game.where["a/v0"] == ("one" if V in roles else "rest")


def test_nobody_is_let_in_whose_denoising_may_not_join() -> None:
    game = crowded()
    game.ask("b", exact=False)
    game.through("b/e")
    begin(game, "b")
    assert runs(game.ask("exact")) == []
    assert runs(game.ask("c", exact=False, steps=40)) == [], "the exact one is first"
    assert runs(game.post(ev.RequestCancelled(RequestId("exact")))) == [("c/e", "one")], "its steps are as long"


def test_the_next_is_let_in_as_soon_as_the_best_is_cancelled() -> None:
    game = crowded()
    game.ask("exact")
    assert runs(game.ask("b", exact=False)) == [], "the exact one is first"
    assert runs(game.post(ev.RequestCancelled(RequestId("exact")))) == [("b/e", "one")]


def test_nobody_is_let_in_where_there_is_no_room() -> None:
    game = crowded(together=2)
    game.ask("b", exact=False)
    game.through("b/e")
    begin(game, "b")
    assert runs(game.ask("c", exact=False)) == []
    assert runs(game.done("a/d0")) == [("a/v0", "one")], "the picture first"
    pause(game, "b")
    game.through("a/v0")
    assert runs(game.started("b/d0")) == [("c/e", "one")]


def test_nobody_is_let_in_where_pauses_are_not_wanted_or_nobody_shares() -> None:
    assert runs(crowded(interrupts=False).ask("b", exact=False)) == []
    game = Game(Policies(batching=OneByOne(), preemption=None))
    game.join("one", together=4)
    game.ask("a", exact=False)
    game.through("a/e")
    begin(game, "a")
    assert runs(game.ask("b", exact=False)) == []


def test_what_was_let_in_and_failed_goes_on_as_any_other() -> None:
    game = crowded()
    game.ask("b", exact=False)
    pause(game, "a")
    game.fetched("b/e")
    game.started("b/e")
    assert runs(game.failed("b/e")) == []
    assert runs(game.started("a/d0")) == [("b/e", "one")]
    game.lose("one")
    game.join("two", together=4)
    assert game.jobs_on("two") != []
