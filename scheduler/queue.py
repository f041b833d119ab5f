"""The waiting jobs of one (model, stage), best first."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heappop, heappush
from typing import Protocol

from scheduler.state import Job

Key = tuple[float, ...]


class StageQueue(Protocol):
    """Keys are static: a job's place among the others never changes while it waits."""

    def __len__(self) -> int: ...

    def push(self, job: Job, key: Key, now: float) -> None: ...

    def discard(self, job: Job) -> None: ...

    def best(self, now: float, adapters: Collection[str] | None = None) -> Job | None:
        """The job to run next; it stays in the queue. With ``adapters``: on a server that has these and no others."""

    def alike(self, job: Job) -> Iterable[Job]:
        """Others in the queue with the very same work and adapters, oldest first."""


class KeyQueue:
    """Smallest key first."""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Job]] = []
        self._waiting: dict[int, Job] = {}
        """Ticket → job; a ticket that is gone makes its heap entry void."""
        self._tickets: dict[str, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, job: Job, key: Key, now: float) -> None:  # noqa: ARG002 - other queues need the time
        self._next += 1
        self._waiting[self._next] = job
        self._tickets[job.spec.id] = self._next
        heappush(self._heap, (key, self._next, job))

    def discard(self, job: Job) -> None:
        ticket = self._tickets.pop(job.spec.id, None)
        if ticket is not None:
            del self._waiting[ticket]

    def best(self, now: float, adapters: Collection[str] | None = None) -> Job | None:  # noqa: ARG002
        while self._heap and self._heap[0][1] not in self._waiting:
            heappop(self._heap)
        best = self._heap[0][2] if self._heap else None
        if best is None or adapters is None or not best.spec.lacks(adapters):
            return best
        able = (entry for entry in self._heap if entry[1] in self._waiting and not entry[2].spec.lacks(adapters))
        return min(able, default=(None, None, None))[2]

    def alike(self, job: Job) -> Iterable[Job]:
        kind = (job.spec.work, job.spec.adapters)
        others = (other for other in self._waiting.values() if other is not job)
        return (other for other in others if (other.spec.work, other.spec.adapters) == kind)
