"""How fast the holders of some stages work off what waits for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from math import ceil

from scheduler.coming import Expected
from scheduler.state import Job, Server
from scheduler.view import View
from wire.record import record
from wire.types import JobId, ModelKey, ServerId

SAMPLE = 16
"""Servers that stand for all: every n-th holder of a role."""


@record(frozen=True, slots=True)
class Pace:
    """How some servers together work off what waits, soonest free first."""

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
        # Between two servers getting free the speed is constant, so it goes from one such moment to the next.
        left, speed, time = work / self.scale, 0.0, 0.0
        for free_at, its_speed in self.servers:
            done = speed * (free_at - time)
            if done >= left and speed:
                break
            left, speed, time = left - done, speed + its_speed, free_at
        return time + (left / speed if speed else 0.0)


class Capacity:
    """The servers of one model at one moment: each is asked only once how busy it is."""

    def __init__(self, view: View, model: ModelKey, now: float, coming: Sequence[Expected] = ()):
        """``coming``: servers that are on their way."""
        self._view = view
        self._coming = coming
        self._model = model
        self._now = now
        self._paces: dict[tuple[JobId, ...], Pace] = {}
        self._busy: dict[ServerId, float] = {}

    def pace(self, jobs: Iterable[Job]) -> Pace:
        """The servers that hold any of the jobs' roles, each with its speed at that one of them that takes longest."""
        jobs = tuple(jobs)
        key = tuple(job.spec.id for job in jobs)
        known = self._paces.get(key)
        if known is None:
            known = self._paces[key] = self._gathered(jobs)
        return known

    def _gathered(self, jobs: Collection[Job]) -> Pace:
        found: dict[ServerId, tuple[Server, Job]] = {}
        count, is_adapted = 0, any(job.spec.adapters for job in jobs)
        for job in sorted(jobs, key=self._view.reference_seconds, reverse=True):
            holders = self._serving(job)
            if is_adapted:
                holders = {name: server for name, server in holders.items() if not _lacks_any(server, jobs)}
            count = max(count, len(holders))
            # A server that holds several of the roles counts once, for the longest job, which comes first here.
            for server in islice(holders.values(), 0, None, 1 + len(holders) // (SAMPLE + 1)):
                found.setdefault(server.id, (server, job))
        servers = [(self._remaining(server), self._speed(server, job)) for server, job in found.values()]
        scale = max(1.0, count / max(1, len(servers)))
        servers += self._arrivals(jobs, scale)
        return Pace(tuple(sorted(servers)), scale)

    def _arrivals(self, jobs: Collection[Job], scale: float) -> Iterable[tuple[float, float]]:
        """Of the servers that are on their way: when, and how fast at that one of the jobs that takes longest."""
        for expected in islice(self._coming, 0, None, ceil(scale)):
            able = [job for job in jobs if job.spec.role in expected.roles]
            if able:
                longest = max(able, key=self._view.reference_seconds)
                seconds = self._view.cost.seconds(longest.spec.work, expected.target)
                yield expected.seconds, self._view.reference_seconds(longest) / seconds

    def share(self, job: Job) -> float:
        """Of the speed of all that hold the job's role, what those have that also have its adapters."""
        if not job.spec.adapters:
            return 1.0
        holders = self._serving(job).values()
        able = sum(self._speed(server, job) for server in holders if not job.spec.lacks(server.spec.adapters))
        return able / sum(self._speed(server, job) for server in holders) if able else 1.0

    def _serving(self, job: Job) -> Mapping[ServerId, Server]:
        return self._view.serving(self._model, job.spec.role)

    def _remaining(self, server: Server) -> float:
        known = self._busy.get(server.id)
        if known is None:
            known = self._busy[server.id] = server.remaining(self._now)
        return known

    def _speed(self, server: Server, job: Job) -> float:
        return self._view.reference_seconds(job) / self._view.seconds(job, server)


def _lacks_any(server: Server, jobs: Iterable[Job]) -> bool:
    """Whether it has not all adapters that these jobs need, as far as it holds their roles."""
    return any(job.spec.lacks(server.spec.adapters) for job in jobs if job.spec.role in server.serving)
