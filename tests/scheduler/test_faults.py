"""Servers die, jobs fail, reports come late: what is run again, and what is not."""

from __future__ import annotations

from scheduler import actions as do
from scheduler import events as ev
from scheduler.policy import Policies
from scheduler.spec import Output, Timings
from tests.scheduler.game import ALL, D, E, Game, V, failure, of, releases, runs
from wire.types import Epoch, Handle, JobId, RequestId, ServerId


def fleet(*names: str, **fields: Policies) -> Game:
    game = Game(**fields)
    for name in names:
        game.join(name)
    return game


def test_a_job_goes_to_another_server_when_its_own_dies() -> None:
    game = fleet("a", "b")
    game.ask("r")
    first = game.where["r/e"]
    assert runs(game.lose(first)) == [("r/e", "b" if first == "a" else "a")]


def test_a_job_waits_when_the_only_server_dies() -> None:
    game = fleet("a")
    game.ask("r")
    assert game.lose("a") == []
    assert runs(game.join("b")) == [("r/e", "b")]


def test_the_encoder_is_not_run_again_when_a_dit_server_dies() -> None:
    game = Game()
    game.join("enc", {E, V})
    game.join("dit1", {D})
    game.join("dit2", {D})
    game.ask("r")
    game.through("r/e")
    game.fetched("r/d0")
    game.started("r/d0")
    first = game.where["r/d0"]
    actions = game.lose(first)
    assert runs(actions) == [("r/d0", "dit2" if first == "dit1" else "dit1")]


def test_a_lost_output_is_made_again_if_somebody_still_needs_it() -> None:
    game = Game()
    game.join("enc1", {E})
    game.ask("r")
    game.through("r/e")  # its dit job waits: nobody holds that role
    game.lose("enc1")
    assert runs(game.join("enc2", {E})) == [("r/e", "enc2")]
    game.join("dit", {D})
    assert runs(game.through("r/e")) == [("r/d0", "dit")]


def test_a_job_that_still_fetches_from_a_dead_server_is_taken_back() -> None:
    game = Game()
    game.join("enc", {E})
    game.join("dit", {D})
    game.ask("r")
    game.through("r/e")
    epoch = game.epochs["r/d0"]
    game.join("enc2", {E})
    actions = game.lose("enc")
    assert [(cancel.server, cancel.epochs) for cancel in of(do.Cancel, actions)] == [("dit", (epoch,))]
    assert runs(actions) == [("r/e", "enc2")]
    game.cancelled("r/d0")
    assert runs(game.through("r/e")) == [("r/d0", "dit")]


def test_a_job_that_has_fetched_does_not_mind_the_death_of_its_source() -> None:
    game = Game()
    game.join("enc", {E})
    game.join("dit", {D})
    game.join("enc2", {E})
    game.ask("r")
    game.through("r/e")
    game.fetched("r/d0")
    assert game.lose(game.where["r/e"]) == []


def test_an_output_that_only_a_later_stage_still_needs_is_made_again() -> None:
    game = Game()
    game.join("enc", {E})
    game.join("dit", {D})
    game.ask("r", masks=True)
    game.through("r/e")
    game.fetched("r/d0")
    game.lose("enc")
    game.join("rest", {E, V})
    assert not runs(game.through("r/d0"))
    (run,) = of(do.Run, game.through("r/e"))
    assert {source.holder for source in run.inputs} == {"rest", "dit"}


def test_when_both_holder_and_reader_die_both_run_again() -> None:
    game = Game()
    game.join("a")
    game.ask("r")
    game.through("r/e", "r/d0")
    game.lose("a")
    assert runs(game.join("b")) == [("r/e", "b")]
    assert runs(game.through("r/e")) == [("r/d0", "b")]
    assert runs(game.through("r/d0")) == [("r/v0", "b")]


def test_pictures_that_were_taken_are_not_made_again() -> None:
    game = Game()
    game.join("a")
    game.ask("r", images=2)
    game.through("r/e", "r/d0", "r/v0")
    game.taken("r/v0")
    game.lose("a")
    game.join("b")
    game.through("r/e", "r/d1", "r/v1")
    assert of(do.Finish, game.taken("r/v1"))
    assert game.where["r/d0"] == "a"


def test_poison() -> None:
    game = fleet("a", "b", "c", "d")
    game.ask("r")
    for _ in range(2):
        game.started("r/e")
        assert failure(game.lose(game.where["r/e"])) is None
    game.started("r/e")
    assert failure(game.lose(game.where["r/e"])) == ("r", "poison")


def test_deaths_before_a_job_computes_are_not_its_fault() -> None:
    game = fleet("a", "b", "c", "d", "e")
    game.ask("r")
    for _ in range(4):
        assert failure(game.lose(game.where["r/e"])) is None


def test_poison_with_another_job_of_the_request_on_the_dying_server() -> None:
    game = Game(Policies(max_losses=1))
    game.join("enc", {E})
    game.join("dit", {D})
    game.ask("r", images=2, steps=1)
    game.through("r/e")
    game.started("r/d0")
    assert sorted(game.jobs_on("dit")) == ["r/d0", "r/d1"]
    actions = game.lose("dit")
    assert failure(actions) == ("r", "poison")
    assert not of(do.Cancel, actions)
    assert releases(actions) == {"enc": [game.handle("r/e")]}


def test_three_reported_errors_are_enough() -> None:
    game = fleet("a")
    game.ask("r")
    assert runs(game.failed("r/e")) == [("r/e", "a")]
    assert runs(game.failed("r/e")) == [("r/e", "a")]
    actions = game.failed("r/e")
    assert failure(actions) == ("r", "engine_error")
    assert not runs(actions)


def test_an_error_that_will_come_again_fails_at_once() -> None:
    game = fleet("a")
    game.ask("r")
    assert failure(game.failed("r/e", "bad_request", retryable=False)) == ("r", "bad_request")


def test_a_server_that_gives_the_role_up_is_not_an_error() -> None:
    game = fleet("a")
    game.ask("r")
    game.join("b", {D, V})
    game.post(ev.RolesOrdered(ServerId("a"), frozenset({D, V})))
    assert not runs(game.failed("r/e", "draining"))
    for _ in range(4):
        game.join("c", {E})
        game.post(ev.ServerLeaving(ServerId("c")))
        assert not runs(game.failed("r/e", "draining"))
        game.lose("c")
    assert runs(game.join("d", {E})) == [("r/e", "d")]


def test_a_server_that_only_pretends_to_give_a_role_up_is_one() -> None:
    game = fleet("a")
    game.ask("r")
    for _ in range(2):
        assert runs(game.failed("r/e", "draining")) == [("r/e", "a")]
    assert failure(game.failed("r/e", "draining")) == ("r", "draining")


def test_a_handle_used_twice_is_an_error() -> None:
    game = fleet("a")
    game.ask("r")
    game.through("r/e")
    used = game.handle("r/e")
    again = ev.JobDone(game.where["r/d0"], game.epochs["r/d0"], (Output("decoder", used, 10),), Timings())
    assert runs(game.post(again)) == [("r/d0", "a")]


def test_a_picture_that_can_never_be_fetched_fails_its_request() -> None:
    game = fleet("a")
    game.ask("r")
    game.through("r/e", "r/d0")
    for _ in range(2):
        game.through("r/v0")
        assert runs(game.post(ev.ResultLost(JobId("r/v0"), game.handle("r/v0")))) == [("r/v0", "a")]
    game.through("r/v0")
    assert failure(game.post(ev.ResultLost(JobId("r/v0"), game.handle("r/v0")))) == ("r", "engine_error")


def test_an_input_that_could_not_be_fetched_is_made_again_and_nothing_else() -> None:
    game = Game()
    game.join("enc", {E})
    game.join("dit", {D})
    game.ask("r", images=2, steps=1)
    game.through("r/e")
    game.fetched("r/d1")
    lost = game.handle("r/e")
    actions = game.failed("r/d0", "input_lost", lost=[lost])
    assert runs(actions) == [("r/e", "enc")]
    assert releases(actions) == {"enc": [lost]}
    assert game.jobs_on("dit") == ["r/d1"]
    assert ("r/d0", "dit") in runs(game.through("r/e"))


def test_a_server_may_give_a_job_up_by_itself() -> None:
    game = fleet("a")
    game.ask("r")
    assert runs(game.cancelled("r/e")) == [("r/e", "a")]


# --- late reports -----------------------------------------------------------------------------------------------------


def test_a_frozen_server_that_wakes_up_cleans_up_and_delivers_nothing() -> None:
    game = fleet("a", "b")
    game.ask("r")
    frozen, late = game.where["r/e"], game.done_event("r/e")
    old = game.epochs["r/e"]
    game.lose(frozen)
    assert game.post(late) == []  # it is unknown, and will be told to say Hello
    actions = game.join(frozen, running=(old,), holds=(late.outputs[0].handle,))
    assert [cancel.epochs for cancel in of(do.Cancel, actions)] == [(old,)]
    assert releases(actions) == {frozen: [late.outputs[0].handle]}
    assert releases(game.post(late)) == {frozen: [late.outputs[0].handle]}
    assert game.where["r/e"] != frozen


def test_reports_of_a_former_epoch_are_answered_with_cancel() -> None:
    game = fleet("a")
    old = Epoch("former", 7)
    server = ServerId("a")
    for event in (ev.JobFetched(server, old), ev.JobStarted(server, old), ev.JobProgressed(server, old, 1, 2, 0.1)):
        (cancel,) = game.post(event)
        assert isinstance(cancel, do.Cancel)
        assert cancel.epochs == (old,)
    assert game.post(ev.JobFailed(server, old, "engine_error", "", retryable=True)) == []
    assert game.post(ev.JobCancelled(server, old)) == []


def test_the_end_of_a_former_attempt_says_nothing_about_the_present_one() -> None:
    """Taken back from ``dit1``, run by ``dit2``, cancelled: the word from ``dit1`` must not close the books."""
    game = Game()
    game.join("enc", {E})
    game.join("dit1", {D})
    game.join("enc2", {E})
    game.ask("r")
    game.through("r/e")
    first = game.epochs["r/d0"]
    game.lose(game.where["r/e"])
    game.join("dit2", {D})
    game.through("r/e")
    assert game.where["r/d0"] == "dit2"
    game.post(ev.RequestCancelled(RequestId("r")))
    game.post(ev.JobCancelled(ServerId("dit1"), first))
    assert game.jobs_on("dit2") == ["r/d0"]
    assert game.lose("dit2") == []


def test_a_late_report_of_a_job_taken_back_frees_the_server() -> None:
    game = Game()
    game.join("enc", {E})
    game.join("dit", {D})
    game.ask("r")
    game.through("r/e")
    late = game.done_event("r/d0")
    game.lose("enc")
    assert releases(game.post(late)) == {"dit": [late.outputs[0].handle]}
    assert game.jobs_on("dit") == []


# --- joining and leaving ----------------------------------------------------------------------------------------------


def test_joining_with_work_of_a_former_gateway() -> None:
    game = Game()
    actions = game.join("a", running=(Epoch("old", 1), Epoch("old", 2)), holds=(Handle("h"),))
    assert of(do.Cancel, actions)[0].epochs == (Epoch("old", 1), Epoch("old", 2))
    assert releases(actions) == {"a": [Handle("h")]}


def test_joining_twice_counts_as_a_loss_in_between() -> None:
    game = fleet("a")
    game.ask("r")
    assert runs(game.join("a")) == [("r/e", "a")]
    assert game.jobs_on("a") == ["r/e"]


def test_a_leaving_server_finishes_but_begins_nothing() -> None:
    game = fleet("a")
    game.ask("r")
    game.post(ev.ServerLeaving(ServerId("a")))
    assert not runs(game.through("r/e"))
    assert not runs(game.post(ev.LimitsRaised(ServerId("a"), dict.fromkeys(ALL, 200))))
    assert runs(game.join("b")) == [("r/d0", "b")]


def test_a_job_that_stood_still_goes_to_another_server_and_only_once() -> None:
    game = Game()
    game.join("rest", {E, V})
    for name in ("a", "b", "c"):
        game.join(name, {D})
    game.ask("r")
    game.through("r/e")
    first = game.where["r/d0"]
    game.post(ev.ServerLeaving(ServerId(first)))
    game.failed("r/d0", "stuck")
    second = game.where["r/d0"]
    assert second != first
    game.lose(first)
    assert game.where["r/d0"] == second, "it was given up there before the server went"
    (fail,) = of(do.Fail, game.failed("r/d0", "stuck"))
    assert (fail.code, fail.message) == (
        "stuck",
        "2 stage servers stood still while they worked on this request, the last one: it broke",
    )


def test_one_that_stood_still_once_may_be_done_by_the_server_after_its_restart() -> None:
    game = Game()
    game.join("rest", {E, V})
    game.join("a")
    game.ask("r")
    game.through("r/e")
    game.post(ev.ServerLeaving(ServerId("a")))
    game.failed("r/d0", "stuck")
    game.lose("a")
    assert runs(game.join("a2", {D})) == [("r/d0", "a2")]
    assert runs(game.through("r/d0")) != []
