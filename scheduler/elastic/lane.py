"""The waiting jobs of one tenant at one stage: deadline, then bypass bound, then key.

The bypass bound: later jobs overtake a job by at most ``bypass_share`` of the work that waited when it was queued, and
by ``patience`` times its own duration times the servers that hold the stage. So it waits at most (1 + ``bypass_share``)
times as long as first-come order would have let it, and ``patience`` times its own duration. This is checked at the
oldest job only, which is enough up to one job per server: one behind it is overtaken only by jobs that overtake the
oldest too, or after the oldest has gone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from typing import NamedTuple

from scheduler.queue import Key
from scheduler.state import Job


class Rank(NamedTuple):
    """A job's key in its queue. The first two order it; the others say how much there is to do."""

    priority: int
    """Smaller goes first."""
    aged: float
    """Remaining seconds of work, and its arrival times the aging."""
    path: float
    """Seconds from its start to the end of its request, if nothing makes it wait."""
    work: float
    """Reference seconds of the job itself."""
    allowance: float
    """Work that may overtake it in any case."""

    @classmethod
    def of(cls, key: Key) -> Rank:
        """The rank that a queue's key is."""
        if isinstance(key, cls):
            return key
        priority, *others = key
        return cls(int(priority), *others)


@dataclass(frozen=True, slots=True)
class LaneRules:
    bypass_share: float
    urgent_share: float
    is_first_come: bool = False


@dataclass(slots=True)
class _Entry:
    job: Job
    rank: Rank
    older: float
    """Work that waited when it came."""
    left_before: float
    """Work that had left the lane when it came."""


class Why(IntEnum):
    """What makes a job the next of its lane; of two lanes the smaller goes first."""

    URGENT = 0
    OVERTAKEN = 1
    SHORTEST = 2


class Lane:
    def __init__(self, rules: LaneRules):
        self._rules = rules
        self._waiting: OrderedDict[int, _Entry] = OrderedDict()
        """By ticket, oldest first; a ticket that is gone makes its heap entries void."""
        self._by_key: list[tuple[int, float, int]] = []
        self._by_start: list[tuple[float, float, int]] = []
        """(start by, hopeless after, ticket)"""
        self._next = 0
        self._work = 0.0
        self._left = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, job: Job, key: Key) -> int:
        """The ticket by which to discard it."""
        rank = Rank.of(key)
        self._next += 1
        self._waiting[self._next] = _Entry(job, rank, self._work, self._left)
        self._work += rank.path
        heappush(self._by_key, (rank.priority, rank.aged, self._next))
        hopeless = job.request.spec.deadline - rank.path
        heappush(self._by_start, (hopeless - self._rules.urgent_share * rank.path, hopeless, self._next))
        return self._next

    def discard(self, ticket: int) -> None:
        work = self._waiting.pop(ticket).rank.path
        self._work -= work
        self._left += work

    def best(self, now: float) -> Job | None:
        """The job to run next."""
        return self.choice(now)[1] if self._waiting else None

    def choice(self, now: float) -> tuple[Why, Job]:
        """The job to run next of a lane that has any, and why it."""
        if not self._rules.is_first_come:
            if (job := self._urgent(now)) is not None:
                return Why.URGENT, job
            if (job := self._overtaken()) is not None:
                return Why.OVERTAKEN, job
        return Why.SHORTEST, self._shortest()

    def _urgent(self, now: float) -> Job | None:
        """One that would miss its deadline if it didn't start soon; not one that will miss it anyway."""
        heap = self._by_start
        # Time never falls, so what is hopeless now stays so and may be dropped for good.
        while heap and (heap[0][1] < now or heap[0][2] not in self._waiting):
            heappop(heap)
        return self._waiting[heap[0][2]].job if heap and heap[0][0] <= now else None

    def _overtaken(self) -> Job | None:
        """The oldest, once enough others have overtaken it."""
        oldest = next(iter(self._waiting.values()))
        overtaken = self._left - oldest.left_before - oldest.older  # all that was older has left as well
        limit = oldest.rank.allowance + self._rules.bypass_share * oldest.older
        return oldest.job if overtaken > limit else None

    def _shortest(self) -> Job:
        while self._by_key[0][2] not in self._waiting:
            heappop(self._by_key)
        return self._waiting[self._by_key[0][2]].job
