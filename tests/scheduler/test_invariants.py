"""The watchdog itself: does it bark?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scheduler import invariants
from scheduler.state import Job, Server
from scheduler.transitions import JobState
from tests.scheduler.game import E, Game
from wire.types import Handle, JobId, ServerId


def damage_record(game: Game, job: Job, server: Server) -> None:
    del game.scheduler.view.jobs[job.spec.id]


def damage_state(game: Game, job: Job, server: Server) -> None:
    job.state = JobState.DONE


def damage_attempt(game: Game, job: Job, server: Server) -> None:
    server.attempts.clear()


def damage_queue(game: Game, job: Job, server: Server) -> None:
    game.scheduler.view.jobs[JobId("b/d0")].queued_key = (0.0,)


def damage_credits(game: Game, job: Job, server: Server) -> None:
    server.sent[E] = server.limits[E] + 1


def damage_outputs(game: Game, job: Job, server: Server) -> None:
    server.holds[Handle("h")] = job


def damage_missing(game: Game, job: Job, server: Server) -> None:
    game.scheduler.view.jobs[JobId("a/d0")].missing.clear()


def damage_listing(game: Game, job: Job, server: Server) -> None:
    game.scheduler.view.stations.clear()


def damage_server(game: Game, job: Job, server: Server) -> None:
    del game.scheduler.view.servers[server.id]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (damage_record, "not on record"),
        (damage_state, "attempt"),
        (damage_attempt, "does not know of it"),
        (damage_queue, "runnable and queued differ"),
        (damage_credits, "more than it allowed"),
        (damage_outputs, "holds outputs of a/e"),
        (damage_missing, "differ|misses"),
        (damage_listing, "not listed"),
        (damage_server, "which is gone"),
    ],
)
def test_damage_is_noticed(damage: Callable[[Game, Job, Server], None], complaint: str) -> None:
    game = Game()
    game.join("s", limit=1)
    game.ask("a")
    game.ask("b")
    invariants.check(game.scheduler.view)
    damage(game, game.scheduler.view.jobs[JobId("a/e")], game.scheduler.view.servers[ServerId("s")])
    with pytest.raises(invariants.Violation, match=complaint):
        invariants.check(game.scheduler.view)
