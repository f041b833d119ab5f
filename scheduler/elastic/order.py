"""The order of waiting jobs: tenant, then what ``lane`` says.

The key of a job is the predicted work that its request still needs from this stage on, plus aging times its arrival.
The second part makes it static: of two jobs the older is ahead by aging times the difference of their ages, whenever
one looks. So a job that is longer by w seconds is overtaken only by those that arrive within w / aging seconds of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from math import inf
from operator import itemgetter
from typing import NamedTuple

from scheduler.elastic.fairness import Fairness
from scheduler.elastic.lane import Lane, LaneRules, Rank
from scheduler.elastic.settings import ElasticSettings, Ordering
from scheduler.policy import Line
from scheduler.queue import Key, StageQueue
from scheduler.state import Job
from scheduler.view import View
from wire.types import JobId, Role

PREVIEW = 1 << 30
"""Priority of what nobody was promised: behind everything else, and never urgent."""

STAGE = {role: number for number, role in enumerate(Role)}


class StageOrder:
    """Of one scheduler: its queues share the tenants' counters."""

    def __init__(self, settings: ElasticSettings, fairness: Fairness):
        self._fairness = fairness
        self._is_first_come = settings.ordering is Ordering.FIRST_COME
        self.aging = 1.0 if self._is_first_come else settings.aging
        """What a key falls behind per second between arrivals."""
        self._patience = settings.patience
        self._rules = LaneRules(settings.bypass_share, settings.urgent_share, self._is_first_come)

    def key(self, job: Job, view: View, now: float) -> Rank:  # noqa: ARG002
        """See ``Rank``."""
        request = job.request
        work = view.reference_seconds(job)
        if job.spec.optional:
            return Rank(PREVIEW, request.arrived_at, inf, work, inf)
        left, path = remaining(job, view)
        aged = (0.0 if self._is_first_come else left) + self.aging * request.arrived_at
        allowance = self._patience * path * max(1, len(view.serving(request.spec.model, job.spec.role)))
        return Rank(-request.spec.priority, aged, path, work, allowance)

    def queue(self) -> StageQueue:
        return TenantQueue(self._fairness, self._rules)

    def line(self, jobs: Iterable[Job], view: View) -> Line:
        return TenantLine(jobs, view, self._fairness)


def remaining(job: Job, view: View) -> tuple[float, float]:
    """Reference seconds that the request needs from this stage on; and those one after another behind this job."""
    stage, total = STAGE[job.spec.role], 0.0
    longest: dict[Role, float] = {}
    for other in job.request.jobs.values():
        role = other.spec.role
        if STAGE[role] < stage or other.holder is not None or other.taken or other.spec.optional:
            continue
        seconds = view.reference_seconds(other)
        total += seconds
        longest[role] = max(longest.get(role, 0.0), seconds)
    return total, sum(longest.values())


class TenantLine:
    """Each tenant's requests by key, all tenants by the reading of their counters when the turn of each comes.

    Deadlines and the bypass bound are left out: they let single requests go before, mostly late in their wait.
    """

    def __init__(self, jobs: Iterable[Job], view: View, fairness: Fairness) -> None:
        self._fairness = fairness
        own: dict[str, list[tuple[_Lead, Job]]] = {}
        for job in jobs:
            own.setdefault(job.request.spec.tenant, []).append((_lead(job), job))
        self._leads: dict[str, list[_Lead]] = {}
        self._turns: dict[str, list[tuple[float, str]]] = {}
        """Of those in ``_leads``, and at the end that of whoever comes behind them."""
        for tenant, waiting in own.items():
            waiting.sort(key=itemgetter(0))
            costs = (remaining(job, view)[0] / fairness.share(tenant) for _, job in waiting)
            self._leads[tenant] = [lead for lead, _ in waiting]
            self._turns[tenant] = [(reading, tenant) for reading in accumulate(costs, initial=fairness.used(tenant))]
        self._all = sorted(turn for turns in self._turns.values() for turn in turns[:-1])

    def ahead(self, job: Job) -> int:
        tenant = job.request.spec.tenant
        if tenant not in self._turns:
            return bisect_left(self._all, (self._fairness.used(tenant), tenant))
        place = bisect_left(self._leads[tenant], _lead(job))
        return bisect_left(self._all, self._turns[tenant][place])


_Lead = tuple[int, float, int]


def _lead(job: Job) -> _Lead:
    """What orders the jobs of one tenant; of equal ones the older request goes first."""
    rank = Rank.of(job.queued_key or ())
    return rank.priority, rank.aged, job.request.index


class _Place(NamedTuple):
    tenant: str
    ticket: int
    job: Job


class TenantQueue:
    """The jobs of one (model, stage)."""

    def __init__(self, fairness: Fairness, rules: LaneRules):
        self._fairness = fairness
        self._rules = rules
        self._lanes: dict[str, Lane] = {}
        """Of tenants with waiting jobs."""
        self._places: dict[JobId, _Place] = {}
        self._alike: dict[object, dict[JobId, Job]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def push(self, job: Job, key: Key, now: float) -> None:  # noqa: ARG002
        tenant = job.request.spec.tenant
        lane = self._lanes.get(tenant)
        if lane is None:
            lane = self._lanes[tenant] = Lane(self._rules)
        self._places[job.spec.id] = _Place(tenant, lane.push(job, key), job)
        self._alike.setdefault(job.spec.work, {})[job.spec.id] = job

    def discard(self, job: Job) -> None:
        place = self._places.pop(job.spec.id, None)
        if place is None:
            return
        lane = self._lanes[place.tenant]
        lane.discard(place.ticket)
        if not lane:
            del self._lanes[place.tenant]
        same = self._alike[job.spec.work]
        del same[job.spec.id]
        if not same:
            del self._alike[job.spec.work]

    def best(self, now: float) -> Job | None:
        if not self._lanes:
            return None
        return self._lanes[self._fairness.next(self._lanes)].best(now)

    def alike(self, job: Job) -> Iterable[Job]:
        return (other for other in self._alike.get(job.spec.work, {}).values() if other is not job)
