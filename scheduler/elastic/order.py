"""The order of waiting jobs: tenant, then what ``lane`` says.

The key of a job is the predicted work that its request still needs from this stage on, plus aging times its arrival.
The second part makes it static: of two jobs the older is ahead by aging times the difference of their ages, whenever
one looks. So a job that is longer by w seconds is overtaken only by those that arrive within w / aging seconds of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from math import inf
from operator import itemgetter
from typing import NamedTuple

from scheduler.elastic.fairness import Fairness
from scheduler.elastic.lane import Lane, LaneRules, Rank, Why
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
        if job.gives_way:
            return Rank(PREVIEW, request.arrived_at, inf, work, inf)
        left, path = remaining(job, view)
        aged = (0.0 if self._is_first_come else left) + self.aging * request.arrived_at
        allowance = self._patience * path * max(1, len(view.serving(request.spec.model, job.spec.role)))
        return Rank(-request.spec.priority, aged, path, work, allowance)

    def queue(self) -> StageQueue:
        return TenantQueue(self._fairness, self._rules)

    def first(self, jobs: Sequence[Job]) -> Job:
        """By tenant, then by key: deadlines and the bypass bound hold within each model."""
        promised = [job for job in jobs if not job.gives_way] or jobs
        tenant = self._fairness.next({job.request.spec.tenant for job in promised})
        return min((job for job in promised if job.request.spec.tenant == tenant), key=_lead)

    def line(self, jobs: Iterable[Job], view: View) -> Line:
        return TenantLine(jobs, view, self._fairness)


def remaining(job: Job, view: View) -> tuple[float, float]:
    """Reference seconds that the request needs from this stage on; and those one after another behind this job."""
    stage, total = STAGE[job.spec.role], 0.0
    longest: dict[Role, float] = {}
    for other in job.request.jobs.values():
        spec = other.spec
        role = spec.role
        if other.holder is not None or STAGE[role] < stage or other.taken or spec.optional:
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
    """The jobs of one (model, stage). A tenant's jobs with other adapters are in a lane of their own, so that one for
    which no server is free holds nobody up: a server looks at the lanes whose adapters it has. Across lanes the bypass
    bound is not kept.
    """

    def __init__(self, fairness: Fairness, rules: LaneRules):
        self._fairness = fairness
        self._rules = rules
        self._lanes: dict[str, dict[frozenset[str], Lane]] = {}
        """Of tenants with waiting jobs, by adapters."""
        self._adapted = 0
        """Waiting jobs with adapters."""
        self._places: dict[JobId, _Place] = {}
        self._alike: dict[object, dict[JobId, Job]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def push(self, job: Job, key: Key, now: float) -> None:  # noqa: ARG002
        tenant, adapters = job.request.spec.tenant, job.spec.adapters
        lanes = self._lanes.setdefault(tenant, {})
        lane = lanes.get(adapters)
        if lane is None:
            lane = lanes[adapters] = Lane(self._rules)
        self._places[job.spec.id] = _Place(tenant, lane.push(job, key), job)
        self._alike.setdefault((job.spec.work, adapters), {})[job.spec.id] = job
        self._adapted += bool(adapters)

    def discard(self, job: Job) -> None:
        place = self._places.pop(job.spec.id, None)
        if place is None:
            return
        lanes, adapters = self._lanes[place.tenant], job.spec.adapters
        lane = lanes[adapters]
        lane.discard(place.ticket)
        if not lane:
            del lanes[adapters]
        if not lanes:
            del self._lanes[place.tenant]
        kind = (job.spec.work, adapters)
        same = self._alike[kind]
        del same[job.spec.id]
        if not same:
            del self._alike[kind]
        self._adapted -= bool(adapters)

    def best(self, now: float, adapters: Collection[str] | None = None) -> Job | None:
        lanes = self._lanes if adapters is None or not self._adapted else self._fitting(adapters)
        if not lanes:
            return None
        mine = [*lanes[self._fairness.next(lanes)].values()]
        if len(mine) == 1:  # as it is most of the time
            return mine[0].best(now)
        return min((lane.choice(now) for lane in mine), key=_turn)[1]

    def alike(self, job: Job) -> Iterable[Job]:
        same = self._alike.get((job.spec.work, job.spec.adapters), {})
        return (other for other in same.values() if other is not job)

    def _fitting(self, adapters: Collection[str]) -> dict[str, dict[frozenset[str], Lane]]:
        """The lanes of a server that has these."""
        fitting = (
            (tenant, {needed: lane for needed, lane in lanes.items() if needed.issubset(adapters)})
            for tenant, lanes in self._lanes.items()
        )
        return {tenant: lanes for tenant, lanes in fitting if lanes}


def _turn(choice: tuple[Why, Job]) -> tuple[Why, _Lead]:
    why, job = choice
    return why, _lead(job)
