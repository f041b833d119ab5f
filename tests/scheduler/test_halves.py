"""A server that has nothing to do helps with another's guided steps: whom it helps, and until when."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.halves import REST_SECONDS
from scheduler.policy import Policies
from scheduler.reach import Failure
from scheduler.spec import Output
from scheduler.state import Attempt, Help, Server
from scheduler.view import View
from tests.scheduler.game import D, E, Game, V, of, releases, runs
from wire.types import Epoch, Handle, RequestId, ServerId


class Always:
    def helper(self, attempt: Attempt, able: Iterable[Server], view: View) -> tuple[Server, float] | None:
        server = next(iter(able), None)
        return None if server is None else (server, 0.5)


def game(*others: str, guided: bool = True) -> Game:
    """One request whose dit job is about to be given away, and servers that could have it."""
    made = Game(Policies(guidance=Always()))
    made.join("rest", {E, V})
    for name in ("a", *others):
        made.join(name, {D}, software="x", shares_guidance=True)
    made.ask("r", guided=guided)
    return made


def begin(made: Game) -> list[Action]:
    """The dit job of the request is given away."""
    return made.through("r/e")


def helps(actions: list[Action]) -> list[tuple[str, str, Epoch]]:
    return [(help_.server, help_.partner, help_.leader) for help_ in of(do.Help, actions)]


def told_to_stop(actions: list[Action]) -> list[str]:
    return [cancel.server for cancel in of(do.Cancel, actions)]


def help_of(made: Game, name: str) -> Epoch:
    help_ = made.scheduler.view.servers[ServerId(name)].help
    assert help_ is not None
    return help_.epoch


def is_helping(made: Game, name: str) -> bool:
    return made.scheduler.view.servers[ServerId(name)].help is not None


def test_one_that_has_nothing_to_do_helps() -> None:
    g = game("b")
    actions = begin(g)
    ((_, where),) = runs(actions)
    (run,), (help_,) = of(do.Run, actions), of(do.Help, actions)
    assert helps(actions) == [(run.partner, where, run.epoch)]
    assert {where, run.partner} == {"a", "b"}
    assert help_.inputs == run.inputs
    assert actions.index(run) < actions.index(help_)


@pytest.mark.parametrize(
    "change",
    [
        {"software": "y"},
        {"software": ""},
        {"shares_guidance": False},
        {"limit": 0},
        {"limit": 1},
        {"roles": {V}},
    ],
)
def test_only_one_that_computes_the_same_helps(change: dict[str, object]) -> None:
    g = game()
    g.join("b", **{"roles": {D}, "software": "x", "shares_guidance": True, **change})  # type: ignore[arg-type]
    assert helps(begin(g)) == []


def test_steps_without_guidance_have_no_halves() -> None:
    g = game("b", guided=False)
    assert helps(begin(g)) == []


def test_steps_that_pictures_steer_have_no_halves() -> None:
    g = game("b", guided=False)
    g.through("r/e", "r/d0", "r/v0")
    g.ask("s", guided=True, steered=True)
    assert helps(g.through("s/e")) == []


def test_steps_of_which_some_are_remembered_have_no_halves() -> None:
    g = game("b", guided=False)
    g.through("r/e", "r/d0", "r/v0")
    g.ask("s", guided=True, step_cache="some")
    assert helps(g.through("s/e")) == []


def test_servers_that_do_not_reach_each_other_do_not_help() -> None:
    g = game("b")
    g.scheduler.view.reach.failing[ServerId("b"), ServerId("a")] = Failure("no answer", 1e9, 5.0)
    g.scheduler.view.reach.failing[ServerId("a"), ServerId("b")] = Failure("no answer", 1e9, 5.0)
    assert helps(begin(g)) == []


def test_a_job_that_comes_gets_the_server_as_if_it_did_nothing() -> None:
    g = game("b")
    begin(g)
    helper = next(name for name in "ab" if is_helping(g, name))
    g.ask("s")
    actions = g.through("s/e")
    assert runs(actions)[-1] == ("s/d0", helper)
    order = [action for action in actions if isinstance(action, do.Cancel | do.Run) and action.server == helper]
    assert [type(action) for action in order] == [do.Cancel, do.Run], "it is told to stop first"
    assert not is_helping(g, helper)


def test_reports_of_progress_are_not_compared_with_the_help_that_others_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be hundreds, and a report twice a second of each."""
    names = [f"s{number}" for number in range(9)]
    g = game(*names)
    begin(g)
    for number in range(4):
        g.ask(f"q{number}", guided=True)
        g.through(f"q{number}/e")
    looked_at: list[Help] = []
    halves = g.scheduler._halves
    why_over = halves._why_over

    def looked(help_: Help) -> str:
        looked_at.append(help_)
        return why_over(help_)

    monkeypatch.setattr(halves, "_why_over", looked)
    for job in ("r/d0", "q0/d0"):
        g.fetched(job)
        g.started(job)
        g.progressed(job, 1, 20, 0.5)
    assert {help_.attempt.job.spec.id for help_ in looked_at} == {"r/d0", "q0/d0"}


def test_a_job_goes_to_one_that_does_nothing_at_all_if_there_is_one() -> None:
    names = [f"s{number}" for number in range(39)]
    g = game(*names)
    begin(g)
    for number in range(19):
        g.ask(f"q{number}", guided=True)
        assert len(helps(g.through(f"q{number}/e"))) == 1
    assert sum(is_helping(g, name) for name in ("a", *names)) == 20


def test_a_job_gets_the_server_also_where_that_takes_no_third_attempt() -> None:
    g = game()
    g.join("b", {D}, limit=2, software="x", shares_guidance=True)
    assert len(helps(begin(g))) == 1
    g.ask("s", guided=True)
    assert runs(g.through("s/e"))[-1][0] == "s/d0"


def test_nobody_helps_while_others_wait_for_the_server() -> None:
    g = Game(Policies(guidance=Always()))
    g.join("rest", {E})
    g.join("a", {D}, software="x", shares_guidance=True)
    g.ask("r", 2, guided=True)
    g.join("b", {D}, {D: 100}, software="x", shares_guidance=True)
    assert helps(begin(g)) == []
    assert len(g.jobs_on("a")) == len(g.jobs_on("b")) == 1


@pytest.mark.parametrize("end", ["done", "failed", "client gone", "lost", "paused", "handed over"])
def test_the_help_ends_with_what_it_helps(end: str) -> None:
    g = game("b")
    begin(g)
    leader, helper = g.where["r/d0"], next(name for name in "ab" if is_helping(g, name))
    g.fetched("r/d0")
    g.started("r/d0")
    match end:
        case "done":
            actions = g.done("r/d0")
        case "failed":
            actions = g.failed("r/d0")
        case "client gone":
            actions = g.post(ev.RequestCancelled(RequestId("r")))
        case "lost":
            actions = g.lose(leader)
        case "paused":
            actions = g.post(ev.JobPaused(leader, g.epochs["r/d0"], 3))
        case _:
            actions = g.post(ev.JobHandedOver(leader, g.epochs["r/d0"], 3, Output("dit", Handle("begun"), 10)))
    assert helper in told_to_stop(actions)
    assert not is_helping(g, helper)


@pytest.mark.parametrize("end", ["lost", "leaves", "other roles"])
def test_a_server_that_goes_helps_nobody_and_nothing_else_happens(end: str) -> None:
    g = game("b")
    begin(g)
    helper = next(name for name in "ab" if is_helping(g, name))
    match end:
        case "lost":
            actions = g.lose(helper)
        case "leaves":
            actions = g.post(ev.ServerLeaving(ServerId(helper)))
        case _:
            actions = g.post(ev.RolesOrdered(ServerId(helper), frozenset({V})))
    assert told_to_stop(actions) == ([] if end == "lost" else [helper])
    assert runs(actions) == []
    g.fetched("r/d0")
    g.started("r/d0")
    assert runs(g.done("r/d0")) == [("r/v0", "rest")]


def test_its_last_word_frees_it_and_one_that_could_not_is_left_alone_for_a_while() -> None:
    g = game("b")
    begin(g)
    helper = next(name for name in "ab" if is_helping(g, name))
    epoch = help_of(g, helper)
    assert told_to_stop(g.post(ev.JobFailed(ServerId(helper), epoch, "engine_error", "no answer", True))) == []
    assert not is_helping(g, helper)
    g.through("r/d0", "r/v0")
    asked = []
    for name in ("at once", "again", "later"):
        g.now += REST_SECONDS if name == "later" else 0.0
        g.ask(name, guided=True)
        asked.append([server for server, _, _ in helps(g.through(f"{name}/e"))])
        g.through(f"{name}/d0", f"{name}/v0")
    assert helper not in asked[0] + asked[1]
    assert len(asked[2]) == 1


def test_what_it_says_of_its_progress_is_not_the_jobs() -> None:
    g = game("b")
    begin(g)
    helper = next(name for name in "ab" if is_helping(g, name))
    epoch = help_of(g, helper)
    for event in (
        ev.JobFetched(ServerId(helper), epoch),
        ev.JobStarted(ServerId(helper), epoch),
        ev.JobProgressed(ServerId(helper), epoch, 5, 20, 0.1),
    ):
        assert g.post(event) == []
    attempt = g.scheduler.view.servers[ServerId(g.where["r/d0"])].attempts[g.epochs["r/d0"]]
    assert attempt.step == 0
    stray = Output("decoder", Handle("stray"), 10)
    g.post(ev.JobDone(ServerId(helper), epoch, ()))
    assert releases(g.post(ev.JobDone(ServerId(helper), epoch, (stray,)))) == {helper: ["stray"]}


def test_what_is_left_takes_half_as_long_while_it_is_helped() -> None:
    g = game("b")
    begin(g)
    server = g.scheduler.view.servers[ServerId(g.where["r/d0"])]
    (attempt,) = server.attempts.values()
    helped = attempt.left(g.now)
    g.lose(next(name for name in "ab" if is_helping(g, name)))
    assert attempt.left(g.now) == pytest.approx(2 * helped)
    assert helped == pytest.approx(attempt.predicted_seconds / 2)


def test_what_was_helped_teaches_nothing_about_what_such_jobs_take() -> None:
    g = game("b")
    begin(g)
    version = g.scheduler.view.cost.version
    g.fetched("r/d0")
    g.started("r/d0")
    g.progressed("r/d0", 10, 20, 100.0)
    assert g.scheduler.view.cost.version == version
