"""Requests on servers that stay: order, credits, late binding, hand-over, results, cancellation, deadlines."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.policy import AdmitUpTo, Policies
from tests.scheduler.game import D, E, Game, V, failure, of, releases, runs
from wire.types import Handle, JobId, RequestId, ServerId


def test_a_request_from_arrival_to_picture() -> None:
    game = Game()
    game.join("s")
    admitted, run = game.ask("r")
    assert isinstance(admitted, do.Admit)
    assert admitted.predicted_seconds > 0
    assert runs([run]) == [("r/e", "s")]
    assert runs(game.through("r/e")) == [("r/d0", "s")]
    (run,) = of(do.Run, game.through("r/d0"))
    assert [source.handle for source in run.inputs] == [game.handle("r/d0")]
    (fetch,) = of(do.FetchResult, game.through("r/v0"))
    assert (fetch.job, fetch.source.handle, fetch.source.holder) == ("r/v0", game.handle("r/v0"), "s")
    actions = game.taken("r/v0")
    assert of(do.Finish, actions)[0].request == "r"
    assert set(releases(actions)["s"]) == {game.handle(job) for job in ("r/e", "r/d0", "r/v0")}
    assert not game.scheduler.view.live


def test_inputs_name_the_server_that_holds_them() -> None:
    game = Game()
    game.join("enc", {E})
    game.join("dit", {D})
    game.ask("r")
    (run,) = of(do.Run, game.through("r/e"))
    assert run.server == "dit"
    assert (run.inputs[0].holder, run.inputs[0].nbytes) == ("enc", 10)


def test_first_come_first_served_and_what_was_begun_goes_before_what_was_not() -> None:
    game = Game()
    game.join("s", limit=1)
    game.ask("a")
    game.ask("b")
    game.post(ev.LimitsRaised(ServerId("s"), dict.fromkeys((E, D, V), 100)))
    order = []
    for job in ("a/e", "a/d0", "a/v0"):
        order += [name for name, _ in runs(game.through(job))]
    assert order[0] == "a/d0"
    assert order.index("a/v0") < order.index("b/d0") if "b/d0" in order else True


def test_a_higher_priority_goes_first() -> None:
    game = Game()
    game.ask("low")
    game.ask("high", priority=1)
    assert runs(game.join("s", {E}, limit=1)) == [("high/e", "s")]


def test_no_more_jobs_than_the_server_allows() -> None:
    game = Game()
    game.join("s", {E}, limit=1)
    assert runs(game.ask("a"))
    assert not runs(game.ask("b"))
    assert not runs(game.through("a/e"))
    assert runs(game.post(ev.LimitsRaised(ServerId("s"), {E: 2}))) == [("b/e", "s")]


def test_the_next_job_is_bound_when_the_device_is_nearly_free() -> None:
    game = Game()
    game.join("enc", {E})
    game.join("dit", {D})
    game.ask("a", steps=1000)
    game.ask("b", steps=1000)
    assert runs(game.through("a/e")) == [("a/d0", "dit")]
    game.fetched("a/d0")
    game.started("a/d0")
    assert not runs(game.through("b/e"))
    game.now = 20.0
    game.progressed("a/d0", 900, 1000, 0.02)  # 2 s are left, of which the last half is the time to fetch
    due = game.scheduler.next_wakeup()
    assert due == pytest.approx(21.5)
    assert runs(game.at(due)) == [("b/d0", "dit")]
    assert game.jobs_on("dit") == ["a/d0", "b/d0"]


def test_idle_servers_go_before_busy_ones() -> None:
    game = Game()
    game.join("a", {E})
    game.join("b", {E})
    assert {runs(game.ask(name))[0][1] for name in ("r1", "r2")} == {"a", "b"}


def test_images_share_one_encoder_run_and_are_released_one_by_one() -> None:
    game = Game()
    game.join("s")
    game.ask("r", images=2)
    game.through("r/e", "r/d0", "r/v0")
    first = game.taken("r/v0")
    assert not of(do.Finish, first)
    assert set(releases(first)["s"]) == {game.handle("r/d0"), game.handle("r/v0")}
    game.through("r/d1", "r/v1")
    last = game.taken("r/v1")
    assert of(do.Finish, last)
    assert set(releases(last)["s"]) == {game.handle(job) for job in ("r/e", "r/d1", "r/v1")}


def test_a_picture_that_cannot_be_fetched_is_made_again() -> None:
    game = Game()
    game.join("s")
    game.ask("r")
    game.through("r/e", "r/d0", "r/v0")
    lost = game.handle("r/v0")
    actions = game.post(ev.ResultLost(JobId("r/v0"), lost))
    assert runs(actions) == [("r/v0", "s")]
    assert releases(actions) == {"s": [lost]}  # perhaps it is there after all
    assert game.post(ev.ResultLost(JobId("r/v0"), lost)) == []  # of the former attempt
    assert of(do.FetchResult, game.through("r/v0"))


def test_an_encoder_that_left_nothing_has_failed() -> None:
    game = Game()
    game.join("s")
    game.ask("r")
    assert runs(game.post(ev.JobDone(ServerId("s"), game.epochs["r/e"], ()))) == [("r/e", "s")]


def test_a_decoder_without_a_picture_is_an_error() -> None:
    game = Game()
    game.join("s")
    game.ask("r")
    game.through("r/e", "r/d0")
    assert failure(game.post(ev.JobDone(ServerId("s"), game.epochs["r/v0"], ()))) == ("r", "engine_error")


def test_cancelling_a_request_frees_what_it_uses() -> None:
    game = Game()
    game.join("s", limit=2)
    game.ask("r", images=2)
    game.through("r/e")
    actions = game.post(ev.RequestCancelled(RequestId("r")))
    (cancel,) = of(do.Cancel, actions)
    assert set(cancel.epochs) == {game.epochs[job] for job in ("r/d0", "r/d1") if job in game.epochs}
    assert releases(actions) == {"s": [game.handle("r/e")]}
    for job in ("r/d0", "r/d1"):
        if job in game.epochs:
            game.cancelled(job)
    assert game.jobs_on("s") == []
    assert game.post(ev.RequestCancelled(RequestId("r"))) == []


def test_what_was_finished_before_the_cancel_came_is_released() -> None:
    game = Game()
    game.join("s")
    game.ask("r")
    game.post(ev.RequestCancelled(RequestId("r")))
    late = game.done_event("r/e")
    assert releases(game.post(late)) == {"s": [late.outputs[0].handle]}
    assert game.jobs_on("s") == []


def test_a_cancelled_job_keeps_its_slot_until_it_is_gone() -> None:
    game = Game()
    game.join("s", {D, E})
    game.ask("a", steps=1000)
    game.through("a/e")
    game.started("a/d0")
    game.ask("b", steps=1000)
    game.through("b/e") if "b/e" in game.epochs else None
    game.post(ev.RequestCancelled(RequestId("a")))
    assert "a/d0" in game.jobs_on("s")
    game.cancelled("a/d0")
    assert "a/d0" not in game.jobs_on("s")
    assert game.jobs_on("s") != []


def test_deadlines() -> None:
    game = Game()
    game.ask("nobody", deadline=5.0)
    assert failure(game.at(5.0)) == ("nobody", "no_capacity")
    game.join("s", {E})
    game.ask("unfinished", deadline=5.0)
    game.join("t", {D, V})
    actions = game.at(10.0)
    assert failure(actions) == ("unfinished", "deadline")
    assert of(do.Cancel, actions)


def test_no_capacity_names_the_role_that_was_missing() -> None:
    game = Game()
    game.join("s", {E, V})
    game.ask("r", deadline=5.0)
    game.through("r/e")
    (fail,) = of(do.Fail, game.at(6.0))
    assert fail.code == "no_capacity"
    assert "dit" in fail.message
    assert "encoder" not in fail.message


def test_a_rejected_request_leaves_nothing() -> None:
    game = Game(Policies(admission=AdmitUpTo(1)))
    game.ask("a")
    (reject,) = game.ask("b")
    assert isinstance(reject, do.Reject)
    assert set(game.scheduler.view.live) == {"a"}
    assert {job.split("/")[0] for job in game.scheduler.view.jobs} == {"a"}
    assert isinstance(game.ask("b")[0], do.Reject)  # its name is free again


def test_a_name_that_is_in_use_is_refused() -> None:
    game = Game()
    game.ask("a")
    with pytest.raises(ValueError, match="request a is already under way"):
        game.ask("a")


def test_every_action_names_its_cause_and_a_reason() -> None:
    game = Game()
    game.join("s")  # event 1
    actions = game.ask("r")
    assert {action.cause for action in actions} == {2}
    assert all(action.reason for action in of(do.Run, actions))


def test_unknown_names_are_ignored() -> None:
    game = Game()
    assert game.post(ev.ResultTaken(JobId("x"))) == []
    assert game.post(ev.ResultLost(JobId("x"), Handle("h"))) == []
    assert game.post(ev.ServerLost(ServerId("x"), "never seen")) == []
    assert game.post(ev.LimitsRaised(ServerId("x"), {E: 1})) == []


def test_a_limit_is_never_lowered() -> None:
    game = Game()
    game.join("s", {E}, limit=1)
    game.post(ev.LimitsRaised(ServerId("s"), {E: 0}))
    assert runs(game.ask("a")) == [("a/e", "s")]


def test_nobody_is_woken_for_a_server_whose_job_stands_still() -> None:
    game = Game(Policies())
    game.join("one")
    game.ask("a", deadline=1000.0)
    game.through("a/e")
    game.fetched("a/d0")
    game.started("a/d0")
    game.at(0.1)
    assert (game.scheduler.next_wakeup() or 0.0) < 1.0, "when its end is as near as a fetch takes"
    game.post(ev.JobPaused(ServerId("one"), game.epochs["a/d0"], 1))
    game.at(0.2)
    assert (game.scheduler.next_wakeup() or 0.0) > 1.0
