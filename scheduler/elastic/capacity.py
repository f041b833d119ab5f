"""How fast the holders of some stages work off what waits for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from scheduler.state import Job, Server
from scheduler.view import View
from wire.types import ModelKey, ServerId

SAMPLE = 16
"""Servers that stand for all: every n-th holder of a role."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Some servers, soonest free first."""

    servers: tuple[tuple[float, float], ...]
    """(seconds until free, reference seconds of work per second)."""
    scale: float = 1.0
    """Servers that each of them stands for."""

    @property
    def speed(self) -> float:
        """Reference seconds of work per second."""
        return self.scale * sum(speed for _, speed in self.servers)

    def level(self, work: float) -> float:
        """Seconds until so much work has been handed out, when whoever gets free takes of it."""
        left, speed, time = work / self.scale, 0.0, 0.0
        for free_at, its_speed in self.servers:
            done = speed * (free_at - time)
            if done >= left and speed:
                break
            left, speed, time = left - done, speed + its_speed, free_at
        return time + (left / speed if speed else 0.0)


def fleet(view: View, model: ModelKey, jobs: Iterable[Job], now: float) -> Fleet:
    """The servers that hold any of the jobs' roles, with the speed at the one that takes longest of what they hold."""
    found: dict[ServerId, tuple[Server, Job]] = {}
    count = 0
    for job in sorted(jobs, key=view.reference_seconds, reverse=True):
        holders = view.holding(model, job.spec.role)
        count = max(count, len(holders))
        for server in islice(holders.values(), 0, None, 1 + len(holders) // (SAMPLE + 1)):
            found.setdefault(server.id, (server, job))
    paces = [(server.remaining(now), _speed(view, server, job)) for server, job in found.values()]
    return Fleet(tuple(sorted(paces)), max(1.0, count / max(1, len(paces))))


def _speed(view: View, server: Server, job: Job) -> float:
    return view.reference_seconds(job) / view.seconds(job, server)
