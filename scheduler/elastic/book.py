"""Work of admitted requests that no server has yet, per stage and tenant, by key: what is ahead of a job.

Unlike the queues it has the jobs whose inputs are not made yet, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from scheduler.elastic.fenwick import Entry, Fenwick, cell_of
from scheduler.elastic.lane import Rank
from scheduler.elastic.order import StageOrder
from scheduler.policy import Observer
from scheduler.state import Attempt, Job, Request
from scheduler.view import Station, View
from wire.types import ROLES, JobId, ModelKey, Role


@dataclass(slots=True)
class Stock:
    """One tenant's work at one stage, in reference seconds."""

    by_priority: dict[int, Fenwick] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(tree.total for tree in self.by_priority.values())

    def ahead(self, rank: Rank) -> float:
        """Work that goes before a job of this rank."""
        before = sum(tree.total for priority, tree in self.by_priority.items() if priority < rank.priority)
        same = self.by_priority.get(rank.priority)
        return before + (same.before(rank.aged) if same is not None else 0.0)

    def add(self, rank: Rank) -> tuple[Fenwick, Entry]:
        tree = self.by_priority.get(rank.priority)
        if tree is None:
            tree = self.by_priority[rank.priority] = Fenwick()
        return tree, tree.add(rank.aged, rank.work)


class Book(Observer):
    def __init__(self, order: StageOrder):
        self._order = order
        self._stocks: dict[Station, dict[str, Stock]] = {}
        self._entries: dict[JobId, tuple[Fenwick, Entry]] = {}
        self._adapted: dict[Station, dict[JobId, tuple[frozenset[str], float]]] = {}
        """Of the jobs that need adapters, those and the work."""
        self._equals: dict[tuple[Fenwick, int], dict[JobId, float]] = {}
        """Work in one cell, oldest first: how those that came at the same moment go one after the other."""

    def stocks(self, model: ModelKey, role: Role) -> Mapping[str, Stock]:
        """By tenant."""
        return self._stocks.get((model, role), {})

    def not_ahead(self, jobs: Iterable[Job], rank: Rank) -> float:
        """What ``Stock.ahead`` counts although it does not go before these jobs, which have that rank, one tenant and
        one stage: they themselves, and younger ones with an equal key.
        """
        own = {job.spec.id: self._entries[job.spec.id] for job in jobs if job.spec.id in self._entries}
        total = 0.0
        for place in {(tree, entry.cell) for tree, entry in own.values() if entry.cell <= cell_of(rank.aged)}:
            some = self._equals[place]
            oldest = next(index for index, job in enumerate(some) if job in own)
            total += sum(islice(some.values(), oldest, None))
        return total

    def needing(self, model: ModelKey, role: Role, adapters: Collection[str]) -> float:
        """Reference seconds of a stage's jobs that need any of these adapters."""
        if not adapters:
            return 0.0
        works = self._adapted.get((model, role), {})
        return sum(work for needed, work in works.values() if not needed.isdisjoint(adapters))

    def backlog(self, model: ModelKey) -> dict[Role, float]:
        """Reference seconds of every stage."""
        return {role: sum(stock.total for stock in self.stocks(model, role).values()) for role in Role}

    def opened(self, request: Request, view: View, now: float) -> None:
        for job in promised(request.jobs.values()):
            if job.holder is None:
                self._add(job, self._order.key(job, view, now))

    def queued(self, job: Job, now: float) -> None:  # noqa: ARG002
        if job.spec.id not in self._entries and job.queued_key is not None and not job.spec.optional:
            self._add(job, Rank.of(job.queued_key))

    def committed(self, attempt: Attempt, view: View, now: float) -> None:  # noqa: ARG002
        self._remove(attempt.job)

    def over(self, request: Request, *, finished: bool) -> None:  # noqa: ARG002
        for job in request.jobs.values():
            self._remove(job)
        model, tenant = request.spec.model, request.spec.tenant
        for role in ROLES:
            stocks = self._stocks.get((model, role), {})
            if tenant in stocks and not stocks[tenant].total:
                del stocks[tenant]

    def _add(self, job: Job, rank: Rank) -> None:
        spec = job.request.spec
        stock = self._stocks.setdefault((spec.model, job.spec.role), {}).setdefault(spec.tenant, Stock())
        tree, entry = self._entries[job.spec.id] = stock.add(rank)
        self._equals.setdefault((tree, entry.cell), {})[job.spec.id] = rank.work
        if job.spec.adapters:
            adapted = self._adapted.setdefault((spec.model, job.spec.role), {})
            adapted[job.spec.id] = (job.spec.adapters, rank.work)

    def _remove(self, job: Job) -> None:
        found = self._entries.pop(job.spec.id, None)
        if found is not None:
            tree, entry = found
            tree.remove(entry)
            if job.spec.adapters:
                del self._adapted[(job.request.spec.model, job.spec.role)][job.spec.id]
            equals = self._equals[(tree, entry.cell)]
            del equals[job.spec.id]
            if not equals:
                del self._equals[(tree, entry.cell)]


def promised(jobs: Iterable[Job]) -> Iterator[Job]:
    """Without previews."""
    return (job for job in jobs if not job.spec.optional)
