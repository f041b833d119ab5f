"""Which gateway runs which job, for how long: owners, leases, attempts.

A job is taken for an attempt of its own number under a lease, which its owner renews. Whoever finds an expired lease
takes the job for the next attempt. Leases are compared with the clocks of the gateways that share the database, which
have to agree to within a few seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from gateway.database.batches import BatchStatus, batches
from gateway.database.database import Database
from gateway.database.jobs import RECORD, JobRecord, JobStatus, jobs, record_of
from gateway.database.unbroken import whole


class Lane(NamedTuple):
    """Jobs among which the order is fixed: those that a tenant posted, or the lines of one batch."""

    tenant: str
    batch_id: str | None = None


class Attempt(NamedTuple):
    job: str
    number: int


@dataclass(frozen=True, slots=True)
class Advance:
    """How far an attempt has come."""

    attempt: Attempt
    step: int
    steps: int
    predicted_at: float | None


class JobQueue:
    """What one gateway, ``owner``, does. Every method raises ``DatabaseError``."""

    def __init__(self, database: Database, owner: str, lease_seconds: float) -> None:
        self._database = database
        self.owner = owner
        self._lease = lease_seconds

    async def waiting(self, now: float) -> Mapping[Lane, int]:
        """How many jobs may be taken, by lane, but for batches."""
        wanted = sa.select(jobs.c.tenant, sa.func.count()).where(jobs.c.batch_id.is_(None), *_free(now))
        async with self._database.session() as connection:
            rows = await connection.execute(wanted.group_by(jobs.c.tenant))
            return {Lane(tenant): count for tenant, count in rows}

    async def waiting_batches(self, now: float) -> Sequence[Lane]:
        """Those with lines that may be taken, oldest first. How many is not counted: there may be 50,000."""
        lines = sa.exists().where(jobs.c.batch_id == batches.c.id, *_free(now))
        wanted = sa.select(batches.c.tenant, batches.c.id).where(batches.c.status == BatchStatus.IN_PROGRESS, lines)
        async with self._database.session() as connection:
            return [Lane(*row) for row in await connection.execute(wanted.order_by(batches.c.created_at))]

    @whole
    async def take(self, lane: Lane, count: int, now: float) -> Sequence[JobRecord]:
        """The first ``count`` of a lane: by priority, then the oldest; of a batch, by line."""
        first = sa.select(jobs.c.id).where(jobs.c.tenant == lane.tenant, *_free(now))
        if lane.batch_id is None:
            first = first.where(jobs.c.batch_id.is_(None)).order_by(
                jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id
            )
        else:
            first = first.where(jobs.c.batch_id == lane.batch_id).order_by(jobs.c.line)
        taken = []
        async with self._database.begin() as connection:
            ids = [row.id for row in await connection.execute(first.limit(count).with_for_update(skip_locked=True))]
            for job_id in ids:
                change = (
                    sa.update(jobs)
                    .where(jobs.c.id == job_id)
                    .values(
                        owner=self.owner,
                        lease_until=now + self._lease,
                        attempt=jobs.c.attempt + 1,
                        token=secrets.token_hex(16),
                        status=JobStatus.QUEUED,
                        step=0,
                        steps=0,
                        in_progress_at=None,
                        predicted_at=None,
                    )
                )
                taken.append(record_of((await connection.execute(change.returning(*RECORD))).one()))
        return taken

    @whole
    async def renew(self, now: float) -> None:
        """The leases of all that this gateway runs, also those that have expired meanwhile and nobody took."""
        mine = sa.update(jobs).where(jobs.c.owner == self.owner, jobs.c.ended_at.is_(None))
        async with self._database.begin() as connection:
            await connection.execute(mine.values(lease_until=now + self._lease))

    async def mine(self) -> set[Attempt]:
        """What this gateway is still to run: not what was cancelled, deleted, or taken by another one."""
        wanted = sa.select(jobs.c.id, jobs.c.attempt).where(jobs.c.owner == self.owner, jobs.c.ended_at.is_(None))
        async with self._database.session() as connection:
            return {Attempt(*row) for row in await connection.execute(wanted)}

    @whole
    async def advance(self, news: Iterable[Advance], now: float) -> None:
        async with self._database.begin() as connection:
            for each in news:
                status = JobStatus.IN_PROGRESS if each.step else JobStatus.QUEUED
                begun = sa.func.coalesce(jobs.c.in_progress_at, now) if each.step else None
                change = sa.update(jobs).where(*_attempt(each.attempt))
                await connection.execute(
                    change.values(
                        status=status,
                        step=each.step,
                        steps=each.steps,
                        predicted_at=each.predicted_at,
                        in_progress_at=begun,
                    )
                )

    @whole
    async def put_back(self, attempt: Attempt, not_before: float, predicted_at: float | None = None) -> None:
        """The attempt came to nothing through no fault of the job's."""
        change = sa.update(jobs).where(*_attempt(attempt), jobs.c.owner == self.owner)
        async with self._database.begin() as connection:
            await connection.execute(change.values(**_LOOSE, not_before=not_before, predicted_at=predicted_at))

    @whole
    async def abandon(self, owner: str) -> int:
        """Let go of all that ``owner`` runs, which is known to be dead, or about to end. Returns how many."""
        change = sa.update(jobs).where(jobs.c.owner == owner, jobs.c.ended_at.is_(None))
        async with self._database.begin() as connection:
            return (await connection.execute(change.values(**_LOOSE))).rowcount

    async def overdue(self, now: float, limit: int) -> Sequence[JobRecord]:
        """Jobs past their deadlines that nobody runs."""
        wanted = sa.select(*RECORD).where(jobs.c.ended_at.is_(None), jobs.c.deadline_at <= now, _unowned(now))
        async with self._database.session() as connection:
            return [record_of(row) for row in await connection.execute(wanted.limit(limit))]


_LOOSE: Mapping[str, object] = {
    "owner": None,
    "lease_until": None,
    "status": JobStatus.QUEUED,
    "step": 0,
    "steps": 0,
    "in_progress_at": None,
}


def _unowned(now: float) -> sa.ColumnElement[bool]:
    return sa.or_(jobs.c.owner.is_(None), jobs.c.lease_until < now)


def _free(now: float) -> tuple[sa.ColumnElement[bool], ...]:
    return jobs.c.ended_at.is_(None), jobs.c.deadline_at > now, jobs.c.not_before <= now, _unowned(now)


def _attempt(attempt: Attempt) -> tuple[sa.ColumnElement[bool], ...]:
    return jobs.c.id == attempt.job, jobs.c.attempt == attempt.number, jobs.c.ended_at.is_(None)
