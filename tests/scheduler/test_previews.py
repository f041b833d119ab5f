"""Intermediate pictures: decoded where nobody is kept waiting, dropped at the first obstacle, never in the way."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.policy import Policies
from scheduler.state import Job
from scheduler.view import View
from tests.scheduler.game import ALL, D, E, Game, V, failure, of, releases, runs
from tests.simulation.schedules import Impatient, Together
from wire.types import Handle, JobId, RequestId, ServerId


def denoising(*, decoders: tuple[str, ...] = ("v",), policies: Policies | None = None, previews: int = 2) -> Game:
    """``r/d0`` runs on ``d``."""
    game = Game(policies)
    game.join("d", {E, D})
    for name in decoders:
        game.join(name, {V})
    game.ask("r", previews=previews)
    game.through("r/e")
    game.fetched("r/d0")
    game.started("r/d0")
    return game


def test_a_preview_is_decoded_while_denoising_goes_on() -> None:
    game = denoising()
    assert runs(game.shows("r/d0", 0)) == [("r/v0.preview.0", "v")]
    (fetch,) = of(do.FetchResult, game.through("r/v0.preview.0"))
    assert fetch.job == "r/v0.preview.0"
    assert game.jobs_on("d") == ["r/d0"]


def test_what_was_read_is_released_at_once_and_the_picture_once_it_was_taken() -> None:
    game = denoising()
    game.shows("r/d0", 0)
    assert releases(game.through("r/v0.preview.0")) == {"d": ["r/d0:shown:0"]}
    picture = game.handle("r/v0.preview.0")
    assert releases(game.taken("r/v0.preview.0")) == {"v": [picture]}


def test_a_request_ends_without_waiting_for_its_previews() -> None:
    game = denoising(decoders=("v", "w"))
    game.shows("r/d0", 0)
    game.fetched("r/v0.preview.0")
    game.done("r/d0")
    game.through("r/v0")
    actions = game.taken("r/v0")
    assert [finish.request for finish in of(do.Finish, actions)] == ["r"]
    assert [cancel.server for cancel in of(do.Cancel, actions)] == [game.where["r/v0.preview.0"]]
    assert "r/d0:shown:0" in releases(actions)["d"]


def test_promised_work_goes_first() -> None:
    game = denoising()
    game.ask("s")
    game.lose("v")
    game.shows("r/d0", 0)
    game.done("r/d0")
    assert runs(game.join("w", {V})) == [("r/v0", "w")]


def test_a_busy_server_gets_no_preview_in_advance() -> None:
    game = denoising()
    game.shows("r/d0", 0)
    game.fetched("r/v0.preview.0")
    game.started("r/v0.preview.0")
    assert runs(game.shows("r/d0", 1)) == []
    assert runs(game.done("r/v0.preview.0")) == [("r/v0.preview.1", "v")]


@pytest.mark.parametrize("obstacle", ["its server dies", "its attempt fails", "its picture is lost"])
def test_the_first_obstacle_ends_a_preview_and_nothing_else(obstacle: str) -> None:
    game = denoising()
    game.shows("r/d0", 0)
    if obstacle == "its server dies":
        actions = game.lose("v")
    elif obstacle == "its attempt fails":
        actions = game.failed("r/v0.preview.0")
    else:
        game.through("r/v0.preview.0")
        actions = game.post(ev.ResultLost(JobId("r/v0.preview.0"), game.handle("r/v0.preview.0")))
    assert failure(actions) is None
    assert runs(actions) == []
    assert game.jobs_on("d") == ["r/d0"]
    game.join("w", {V})
    game.done("r/d0")
    game.through("r/v0")
    assert of(do.Finish, game.taken("r/v0"))


def test_denoising_that_starts_over_shows_anew() -> None:
    game = denoising(decoders=())
    game.shows("r/d0", 0)
    game.failed("r/d0")
    game.join("v", {V})
    assert "r/v0.preview.0" not in game.scheduler.view.jobs
    game.fetched("r/d0")
    game.started("r/d0")
    assert runs(game.shows("r/d0", 0)) == [("r/v0.preview.0", "v")]


def test_a_server_that_dies_takes_what_it_showed_along() -> None:
    game = denoising(decoders=())
    game.shows("r/d0", 0)
    game.lose("d")
    game.join("v", ALL)
    assert set(game.scheduler.view.jobs) == {"r/e", "r/d0", "r/v0"}


def test_what_nobody_asked_for_is_dropped_where_it_lies() -> None:
    game = denoising(previews=1)
    assert releases(game.shows("r/d0", 1)) == {"d": ["r/d0:shown:1"]}
    game.shows("r/d0", 0)
    again = ev.JobPreviewed(
        ServerId("d"), game.epochs["r/d0"], 0, game.scheduler.view.jobs[JobId("r/v0.preview.0")].shown
    )
    assert releases(game.post(again)) == {"d": [Handle("r/d0:shown:0")]}


def test_what_a_cancelled_attempt_shows_is_dropped() -> None:
    """It may end with a result before it hears of that, and what it showed would stay."""
    game = denoising(previews=1)
    game.post(ev.RequestCancelled(RequestId("r")))
    assert releases(game.shows("r/d0", 0)) == {"d": ["r/d0:shown:0"]}


def test_on_a_device_of_its_own_a_preview_slips_in_between_two_steps() -> None:
    game = Game(Policies(preemption=Impatient()))
    game.join("all", ALL)
    game.ask("r", previews=1)
    game.through("r/e")
    game.fetched("r/d0")
    game.started("r/d0")
    game.progressed("r/d0", 1, 20, 0.1)
    (run,) = of(do.Run, game.shows("r/d0", 0))
    assert (run.server, run.preempt, run.keep_seconds) == ("all", True, 0.0)


class Keeping:
    """Finished pictures wait for all intermediate ones."""

    def keeps(self, preview: Job, view: View, now: float) -> bool:
        return True


def test_a_finished_picture_waits_for_those_that_are_kept() -> None:
    game = denoising(policies=Policies(previews=Keeping()))
    game.shows("r/d0", 0)
    assert runs(game.shows("r/d0", 1)) == [("r/v0.preview.1", "v")]  # in the second slot, as what was promised
    assert runs(game.done("r/d0")) == []
    game.through("r/v0.preview.0", "r/v0.preview.1")
    assert runs(game.taken("r/v0.preview.0")) == []
    assert runs(game.taken("r/v0.preview.1")) == [("r/v0", "v")]


@pytest.mark.parametrize("obstacle", ["its server dies", "its attempt fails", "its picture is lost", "its holder dies"])
def test_an_obstacle_to_a_kept_one_lets_the_finished_picture_go(obstacle: str) -> None:
    game = denoising(decoders=("v",), policies=Policies(previews=Keeping()), previews=1)
    game.shows("r/d0", 0)
    game.join("w", {V})
    assert runs(game.done("r/d0")) == []
    if obstacle == "its server dies":
        actions = game.lose("v")
    elif obstacle == "its attempt fails":
        actions = game.failed("r/v0.preview.0")
    else:
        game.through("r/v0.preview.0")
        lost = ev.ResultLost(JobId("r/v0.preview.0"), game.handle("r/v0.preview.0"))
        actions = game.post(lost) if obstacle == "its picture is lost" else game.lose("v")
    assert [job for job, _ in runs(actions)] == ["r/v0"]
    game.through("r/v0")
    assert of(do.Finish, game.taken("r/v0"))


def test_a_group_lets_in_between_two_steps_what_is_kept() -> None:
    game = Game(Policies(batching=Together(), preemption=Impatient(), previews=Keeping()))
    game.join("all", ALL, together=4)
    for name in ("r", "s"):
        game.ask(name, previews=1, exact=False)
    game.through("r/e", "s/e")
    for name in ("r", "s"):
        game.fetched(f"{name}/d0")
        game.started(f"{name}/d0")
    (run,) = of(do.Run, game.shows("r/d0", 0))
    assert (run.job, run.preempt) == ("r/v0.preview.0", True)
