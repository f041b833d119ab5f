"""Jobs: requests that outlive their connection, and the lines of batches, which are jobs as well.

A job is unfinished until ``ended_at`` is set, once, by whoever changes it under the attempt that it knows. Who runs it
meanwhile is ``job_queue``'s concern. What it is asked to do, and what came of it, are opaque here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.database.database import Database
from gateway.database.deliveries import Delivery, deliveries
from gateway.database.tables import metadata
from gateway.database.unbroken import whole


class JobStatus(StrEnum):
    QUEUED = "queued"
    """Waits, here or in the scheduler's queues."""
    IN_PROGRESS = "in_progress"
    """The first step is done."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """Its deadline passed."""


jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(200), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("pictures", sa.Integer, nullable=False),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("outputs", sa.Text, nullable=False),
    sa.Column("nbytes", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("in_progress_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("deadline_at", sa.Double, nullable=False),
    sa.Column("predicted_at", sa.Double),
    sa.Column("expires_at", sa.Double),
    sa.Column("token", sa.String(64)),
    sa.Column("answer", sa.LargeBinary),
    sa.Column("error", sa.LargeBinary),
    sa.Column("webhook_url", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("lease_until", sa.Double),
    sa.Column("not_before", sa.Double, nullable=False),
    sa.Column("batch_id", sa.String(64)),
    sa.Column("line", sa.Integer),
    sa.Column("custom_id", sa.Text),
    sa.Column("begins", sa.BigInteger),
    sa.Column("length", sa.Integer),
    sa.Index("ix_jobs_tenant_created_at", "tenant", "created_at"),
    sa.Index("ix_jobs_batch_id_ended_at_line", "batch_id", "ended_at", "line"),
    sa.Index("ix_jobs_ended_at_deadline_at", "ended_at", "deadline_at"),
    sa.Index("ix_jobs_expires_at", "expires_at"),
    sa.Index("ix_jobs_owner", "owner"),
    sa.Index("ix_jobs_token", "token"),
)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job. Times are Unix times."""

    id: str
    tenant: str
    endpoint: str
    model: str
    """Served model id."""
    request: bytes
    """What is to be done. The line of a batch itself lies in the batch's file."""
    created_at: float
    deadline_at: float
    priority: int = 0
    pictures: int = 1
    """To be made."""
    inputs: str = ""
    """Names of the pictures that it was sent, with commas between."""
    outputs: str = ""
    """Names of the pictures that it made, likewise."""
    nbytes: int = 0
    """What it takes in the file store, or may come to take."""
    status: JobStatus = JobStatus.QUEUED
    step: int = 0
    steps: int = 0
    """Of all pictures; 0 before the first step is done."""
    in_progress_at: float | None = None
    ended_at: float | None = None
    predicted_at: float | None = None
    """When it will be done, as foreseen at its admission."""
    expires_at: float | None = None
    """When it is deleted, with all that belongs to it."""
    token: str | None = None
    """Under which the latest attempt keeps its pictures: 128 random bits."""
    answer: bytes | None = None
    error: bytes | None = None
    webhook_url: str | None = None
    attempt: int = 0
    batch_id: str | None = None
    line: int | None = None
    """Of the batch's file, from 1."""
    custom_id: str | None = None
    begins: int | None = None
    """Where the line lies in that file, in bytes."""
    length: int | None = None


RECORD = tuple(jobs.c[each.name] for each in fields(JobRecord))
"""The columns that a ``JobRecord`` is made of."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends."""

    status: JobStatus
    at: float
    expires_at: float | None
    outputs: str = ""
    nbytes: int = 0
    """What it still takes in the file store."""
    answer: bytes | None = None
    error: bytes | None = None
    event: Delivery | None = None
    """What its webhook is told; committed with the end itself."""


@dataclass(frozen=True, slots=True)
class Page:
    records: Sequence[JobRecord]
    has_more: bool


class Jobs:
    """Every method raises ``DatabaseError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def add(self, records: Sequence[JobRecord]) -> None:
        """Committed on return."""
        rows = [{each.name: getattr(record, each.name) for each in fields(JobRecord)} for record in records]
        async with self._database.begin() as connection:
            await connection.execute(sa.insert(jobs), [{**row, "not_before": 0.0} for row in rows])

    async def get(self, tenant: str, job_id: str) -> JobRecord | None:
        """None for what is unknown, another tenant's, or a line of a batch."""
        wanted = sa.select(*RECORD).where(jobs.c.id == job_id, jobs.c.tenant == tenant, jobs.c.batch_id.is_(None))
        async with self._database.session() as connection:
            row = (await connection.execute(wanted)).one_or_none()
        return None if row is None else record_of(row)

    async def is_over(self, job_id: str) -> bool:
        """Whether it has ended, or is deleted."""
        wanted = sa.select(jobs.c.ended_at).where(jobs.c.id == job_id)
        async with self._database.session() as connection:
            row = (await connection.execute(wanted)).one_or_none()
        return row is None or row.ended_at is not None

    async def place(self, record: JobRecord) -> int:
        """Of a queued job among all that its tenant has waiting, from 1."""
        first = sa.or_(
            jobs.c.priority > record.priority,
            sa.and_(
                jobs.c.priority == record.priority,
                sa.or_(
                    jobs.c.created_at < record.created_at,
                    sa.and_(jobs.c.created_at == record.created_at, jobs.c.id < record.id),
                ),
            ),
        )
        ahead = sa.select(sa.func.count()).where(
            jobs.c.tenant == record.tenant,
            jobs.c.batch_id.is_(None),
            jobs.c.ended_at.is_(None),
            jobs.c.status == JobStatus.QUEUED,
            first,
        )
        async with self._database.session() as connection:
            return 1 + int((await connection.execute(ahead)).scalar_one())

    async def page(self, tenant: str, *, limit: int, after: JobRecord | None, oldest_first: bool) -> Page:
        """The tenant's jobs, newest first unless told otherwise, from the one behind ``after`` on."""
        order = (jobs.c.created_at, jobs.c.id)
        wanted = sa.select(*RECORD).where(jobs.c.tenant == tenant, jobs.c.batch_id.is_(None))
        if after is not None:
            here, there = sa.tuple_(*order), sa.tuple_(sa.literal(after.created_at), sa.literal(after.id))
            wanted = wanted.where(here > there if oldest_first else here < there)
        wanted = wanted.order_by(*(order if oldest_first else map(sa.desc, order))).limit(limit + 1)
        async with self._database.session() as connection:
            found = [record_of(row) for row in await connection.execute(wanted)]
        return Page(found[:limit], len(found) > limit)

    @whole
    async def finish(self, job_id: str, ending: Ending, attempt: int | None = None) -> bool:
        """End an unfinished job. False if it has ended before or, where ``attempt`` is given, another one has begun."""
        change = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.ended_at.is_(None))
        if attempt is not None:
            change = change.where(jobs.c.attempt == attempt)
        change = change.values(
            status=ending.status,
            ended_at=ending.at,
            expires_at=ending.expires_at,
            outputs=ending.outputs,
            nbytes=ending.nbytes,
            answer=ending.answer,
            error=ending.error,
            owner=None,
            lease_until=None,
        )
        async with self._database.begin() as connection:
            if not (await connection.execute(change)).rowcount:
                return False
            if ending.event is not None:
                await connection.execute(sa.insert(deliveries), [ending.event.row()])
            return True

    @whole
    async def delete(self, job_ids: Collection[str]) -> None:
        """With whatever of their webhooks has not been delivered."""
        async with self._database.begin() as connection:
            await connection.execute(sa.delete(deliveries).where(deliveries.c.subject.in_(job_ids)))
            await connection.execute(sa.delete(jobs).where(jobs.c.id.in_(job_ids)))

    async def wipe(self) -> None:
        """What was deleted vanishes from the disk, too."""
        await self._database.wipe()

    async def over(self, now: float, limit: int) -> list[JobRecord]:
        """Jobs whose time of being kept is over."""
        wanted = sa.select(*RECORD).where(jobs.c.expires_at <= now).limit(limit)
        async with self._database.session() as connection:
            return [record_of(row) for row in await connection.execute(wanted)]

    async def held_bytes(self) -> dict[str, int]:
        """What all jobs take in the file store, or may come to take, by tenant."""
        wanted = sa.select(jobs.c.tenant, sa.func.sum(jobs.c.nbytes)).group_by(jobs.c.tenant)
        async with self._database.session() as connection:
            return {tenant: int(nbytes) for tenant, nbytes in await connection.execute(wanted) if nbytes}

    async def known(self, *, unfinished: Collection[str], tokens: Collection[str]) -> tuple[set[str], set[str]]:
        """Which of these ids are unfinished jobs', and which tokens any job's."""
        ids = sa.select(jobs.c.id).where(jobs.c.id.in_(unfinished), jobs.c.ended_at.is_(None))
        held = sa.select(jobs.c.token).where(jobs.c.token.in_(tokens))
        async with self._database.session() as connection:
            return await _strings(connection, ids), await _strings(connection, held)


async def _strings(connection: AsyncConnection, wanted: sa.Select[Any]) -> set[str]:
    return set((await connection.execute(wanted)).scalars())


def record_of(row: sa.Row[Any]) -> JobRecord:
    return JobRecord(**{**row._mapping, "status": JobStatus(row.status)})
