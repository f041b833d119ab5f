"""Denoising that goes on elsewhere: who is asked for it, from where it goes on, and what becomes of what was left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.policy import Policies
from scheduler.spec import Output, Timings
from scheduler.state import Attempt
from scheduler.view import View
from tests.scheduler.game import D, E, Game, V, of, releases, runs
from wire.types import Handle, Role, ServerId


class Always:
    def worth(self, attempt: Attempt, view: View, now: float) -> str:
        return "" if Role.DIT in attempt.server.serving else "its server gives the role up"


def game(*dits: str, previews: int = 0) -> Game:
    """One request whose dit job runs on ``a``; the other servers join after that."""
    made = Game(Policies(migration=Always()))
    made.join("rest", {E, V})
    made.join("a", {D}, software="x")
    made.ask("r", previews=previews)
    made.through("r/e")
    made.fetched("r/d0")
    made.started("r/d0")
    for name in dits:
        made.join(name, {D}, software="x")
    return made


def asked(actions: list[do.Action]) -> list[tuple[str, int]]:
    return [(action.server, len(action.epochs)) for action in of(do.HandOver, actions)]


def leave(game: Game, name: str = "a") -> list[do.Action]:
    return game.post(ev.ServerLeaving(ServerId(name), 30.0))


def handed_over(game: Game, job: str = "r/d0", step: int = 5, handle: str | None = "begun") -> list[do.Action]:
    output = None if handle is None else Output("dit", Handle(handle), 10)
    return game.post(ev.JobHandedOver(game.where[job], game.epochs[job], step, output, Timings(compute=1.0)))


def resumed(actions: list[do.Action]) -> list[tuple[str, str | None]]:
    return [(run.server, run.resume and run.resume.handle) for run in of(do.Run, actions)]


def test_a_server_that_leaves_is_asked_once_for_what_it_denoises() -> None:
    g = game("b")
    assert asked(leave(g)) == [("a", 1)]
    assert asked(g.progressed("r/d0", 3, 20, 0.1)) == []


def test_another_server_goes_on_from_there_and_then_nothing_is_left_behind() -> None:
    g = game("b")
    leave(g)
    assert resumed(handed_over(g)) == [("b", "begun")]
    assert releases(g.fetched("r/d0")) == {"a": ["begun"]}
    g.started("r/d0")
    assert runs(g.done("r/d0")) == [("r/v0", "rest")]


def test_only_the_steps_that_are_left_count_as_work() -> None:
    g = game("b")
    job = g.scheduler.view.jobs["r/d0"]
    leave(g)
    handed_over(g, step=15)
    assert job.spec.work.steps == 5
    assert job.attempt is not None
    assert job.attempt.step == 15
    assert job.attempt.predicted_seconds == g.scheduler.view.seconds(job, job.attempt.server)


def test_the_role_given_up_in_a_change_of_roles_is_handed_over_as_well() -> None:
    g = game("b")
    assert asked(g.post(ev.RolesOrdered(ServerId("a"), frozenset({V})))) == [("a", 1)]


def test_whoever_cannot_hand_over_is_not_asked() -> None:
    g = Game(Policies(migration=Always()))
    g.join("rest", {E, V})
    g.join("a", {D})
    g.ask("r")
    g.through("r/e")
    assert asked(leave(g)) == []


@pytest.mark.parametrize("exact", [True, False])
def test_what_steps_remember_stays_behind_so_an_exact_job_whose_steps_do_stays_too(exact: bool) -> None:
    g = Game(Policies(migration=Always()))
    g.join("rest", {E, V})
    g.join("a", {D}, software="x")
    g.ask("r", exact=exact, step_cache="low")
    g.through("r/e")
    g.fetched("r/d0")
    g.started("r/d0")
    g.join("b", {D}, software="x")
    assert asked(leave(g)) == ([] if exact else [("a", 1)])


def test_its_holder_dies_and_the_denoising_starts_anew() -> None:
    g = game()
    leave(g)
    assert resumed(handed_over(g)) == []
    g.lose("a")
    assert g.scheduler.view.jobs["r/d0"].spec.work.steps == 20
    assert resumed(g.join("b", {D}, software="x")) == [("b", None)]


def test_what_cannot_be_fetched_is_not_gone_on_from() -> None:
    g = game("b", "c")
    leave(g)
    handed_over(g)
    actions = g.failed("r/d0", "input_lost", lost=["begun"])
    assert "begun" in releases(actions)["a"]
    assert [handle for _, handle in resumed(actions)] == [None]
    assert g.scheduler.view.jobs["r/d0"].first_step == 0


def test_the_server_that_goes_on_dies_before_and_after_it_has_fetched() -> None:
    g = game("b", "c")
    leave(g)
    handed_over(g)
    ((second, _),) = [(g.where["r/d0"], 0)]
    assert [handle for _, handle in resumed(g.lose(second))] == ["begun"]
    g.fetched("r/d0")
    assert g.scheduler.view.jobs["r/d0"].first_step == 5
    g.join("d", {D}, software="x")
    assert [handle for _, handle in resumed(g.lose(g.where["r/d0"]))] == [None]
    assert g.scheduler.view.jobs["r/d0"].first_step == 0


def test_what_was_not_begun_leaves_nothing_and_starts_elsewhere() -> None:
    g = game("b")
    leave(g)
    assert resumed(handed_over(g, step=0, handle=None)) == [("b", None)]


def test_previews_that_were_shown_stay() -> None:
    g = game("b", previews=2)
    g.shows("r/d0", 0)
    leave(g)
    handed_over(g)
    assert "r/v0.preview.0" in g.scheduler.view.jobs


def test_a_cancelled_request_leaves_nothing() -> None:
    g = game()
    leave(g)
    handed_over(g)
    assert "begun" in releases(g.post(ev.RequestCancelled(g.scheduler.view.jobs["r/d0"].request.spec.id)))["a"]


def test_a_late_answer_is_dropped() -> None:
    g = game("b")
    leave(g)
    where, epoch = g.where["r/d0"], g.epochs["r/d0"]
    g.post(ev.RequestCancelled(g.scheduler.view.jobs["r/d0"].request.spec.id))
    late = ev.JobHandedOver(where, epoch, 5, Output("dit", Handle("begun"), 10))
    assert releases(g.post(late)) == {"a": ["begun"]}
    assert releases(g.post(late)) == {"a": ["begun"]}, "of an epoch that is known no more"


class TestExact:
    """Requests are exact unless they say otherwise."""

    def begun(self, *others: tuple[str, str]) -> Game:
        g = game()
        for name, software in others:
            g.join(name, {D}, software=software)
        leave(g)
        return g

    def test_goes_on_where_the_same_software_computes(self) -> None:
        g = self.begun(("b", "y"), ("c", "x"))
        assert resumed(handed_over(g)) == [("c", "begun")]

    def test_begins_anew_where_only_other_software_is_left(self) -> None:
        g = self.begun(("b", "y"))
        actions = handed_over(g)
        assert resumed(actions) == [("b", None)]
        assert "begun" in releases(actions)["a"]
        assert g.scheduler.view.jobs["r/d0"].attempt.predicted_seconds == g.scheduler.view.seconds(
            g.scheduler.view.jobs["r/d0"], g.scheduler.view.servers[ServerId("b")]
        )
        assert g.scheduler.view.jobs["r/d0"].first_step == 0

    def test_others_go_on_anywhere(self) -> None:
        g = self.begun(("b", "y"))
        request = g.scheduler.view.jobs["r/d0"].request
        request.spec = replace(request.spec, exact=False)
        assert resumed(handed_over(g)) == [("b", "begun")]
