"""What the records themselves promise."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from scheduler import events as ev
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.policy import AdmitUpTo, Policies
from scheduler.state import Attempt, Job, Request
from tests.scheduler.game import Game
from wire.types import JobId, RequestId


def test_a_pause_is_no_part_of_what_an_attempt_takes() -> None:
    game = Game()
    game.join("a")
    game.ask("r")
    game.through("r/e")
    game.fetched("r/d0")
    game.started("r/d0")
    game.now = 10.0
    game.progressed("r/d0", 4, 20, 2.0)
    attempt = game.scheduler.view.jobs[JobId("r/d0")].attempt
    assert attempt is not None
    assert attempt.remaining(12.0) == 30.0
    game.now = 12.0
    game.post(ev.JobPaused(game.where["r/d0"], game.epochs["r/d0"], 5))
    assert attempt.remaining(50.0) == 30.0
    game.now = 50.0
    game.started("r/d0")
    assert attempt.remaining(51.0) == 29.0


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def records() -> int:
    return sum(isinstance(thing, Request | Job | Attempt) for thing in gc.get_objects())


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("policies", [Policies, lambda: elastic_policies(ElasticSettings(), ())])
def test_records_go_with_their_request_without_a_garbage_collection(policies: Callable[[], Policies]) -> None:
    before, game = records(), Game(policies())
    game.join("a")
    game.ask("finished")
    game.through("finished/e", "finished/d0", "finished/v0")
    game.taken("finished/v0")
    game.ask("cancelled")
    game.started("cancelled/e")
    game.post(ev.RequestCancelled(RequestId("cancelled")))
    game.cancelled("cancelled/e")
    game.ask("lost")
    game.post(ev.RequestCancelled(RequestId("lost")))
    game.lose("a")
    assert records() - before == 0


@pytest.mark.usefixtures("uncollected")
def test_records_of_a_rejected_request_go_at_once() -> None:
    before, game = records(), Game(Policies(admission=AdmitUpTo(0)))
    game.ask("r")
    assert records() - before == 0
