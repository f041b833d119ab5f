"""Batches: files of requests that are run when nothing else is. Their lines are jobs (``jobs.py``).

Whoever validates a batch, or writes its output, does so under a lease and an attempt, as with jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from gateway.database.database import Database
from gateway.database.jobs import RECORD, JobRecord, JobStatus, jobs, record_of
from gateway.database.tables import metadata
from gateway.database.unbroken import whole


class BatchStatus(StrEnum):
    """OpenAI's."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(200), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("input_file_id", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("given", sa.LargeBinary, nullable=False),
    sa.Column("output_seconds", sa.Integer),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("in_progress_at", sa.Double),
    sa.Column("finalizing_at", sa.Double),
    sa.Column("cancelling_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("completed", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("errors", sa.LargeBinary),
    sa.Column("output_file_id", sa.String(64)),
    sa.Column("error_file_id", sa.String(64)),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("lease_until", sa.Double),
    sa.Index("ix_batches_tenant_created_at", "tenant", "created_at"),
    sa.Index("ix_batches_ended_at", "ended_at"),
)


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """Times are Unix times."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    request: bytes
    """What each of its lines is told, beside its place in the file."""
    given: bytes
    """``metadata`` of the request, as JSON."""
    created_at: float
    expires_at: float
    """When what has not been run by then is given up."""
    output_seconds: int | None = None
    """How long the files of the output are kept, from their creation."""
    status: BatchStatus = BatchStatus.VALIDATING
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    cancelling_at: float | None = None
    ended_at: float | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: bytes | None = None
    """Of a file that cannot be run, as JSON."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    attempt: int = 0


RECORD_OF_BATCH = tuple(batches.c[each.name] for each in fields(BatchRecord))

AT_ONCE = 2000
"""Lines of a batch that one transaction changes."""

LINE_ENDED = {
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.EXPIRED: "failed",
    JobStatus.CANCELLED: "failed",
}


class Batches:
    """Every method raises ``DatabaseError``."""

    def __init__(self, database: Database, owner: str, lease_seconds: float) -> None:
        self._database = database
        self._owner = owner
        self._lease = lease_seconds

    # --- for callers --------------------------------------------------------------------------------------------------

    @whole
    async def add(self, record: BatchRecord) -> None:
        row = {each.name: getattr(record, each.name) for each in fields(BatchRecord)}
        async with self._database.begin() as connection:
            await connection.execute(sa.insert(batches), [row])

    async def get(self, tenant: str, batch_id: str) -> BatchRecord | None:
        wanted = sa.select(*RECORD_OF_BATCH).where(batches.c.id == batch_id, batches.c.tenant == tenant)
        async with self._database.session() as connection:
            row = (await connection.execute(wanted)).one_or_none()
        return None if row is None else _batch(row)

    async def page(self, tenant: str, *, limit: int, after: BatchRecord | None) -> tuple[Sequence[BatchRecord], bool]:
        """The tenant's batches, newest first, from the one behind ``after`` on; and whether there are more."""
        order = (batches.c.created_at, batches.c.id)
        wanted = sa.select(*RECORD_OF_BATCH).where(batches.c.tenant == tenant)
        if after is not None:
            wanted = wanted.where(sa.tuple_(*order) < sa.tuple_(sa.literal(after.created_at), sa.literal(after.id)))
        async with self._database.session() as connection:
            rows = await connection.execute(wanted.order_by(*map(sa.desc, order)).limit(limit + 1))
            found = [_batch(row) for row in rows]
        return found[:limit], len(found) > limit

    async def counts(self, batch_id: str) -> Mapping[str, int]:
        """Lines that are ``completed`` or ``failed`` by now."""
        wanted = sa.select(jobs.c.status, sa.func.count()).where(jobs.c.batch_id == batch_id).group_by(jobs.c.status)
        counted = {"completed": 0, "failed": 0}
        async with self._database.session() as connection:
            for status, count in await connection.execute(wanted):
                if status in LINE_ENDED:
                    counted[LINE_ENDED[status]] += count
        return counted

    @whole
    async def cancel(self, batch_id: str, now: float) -> bool:
        """False if it has ended, or is being cancelled already."""
        able = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING)
        change = sa.update(batches).where(batches.c.id == batch_id, batches.c.status.in_(able))
        # A new attempt: whoever is at work on it now finds that it is no longer theirs.
        change = change.values(
            status=BatchStatus.CANCELLING, cancelling_at=now, attempt=batches.c.attempt + 1, owner=None
        )
        async with self._database.begin() as connection:
            return bool((await connection.execute(change)).rowcount)

    # --- for whoever works on them ------------------------------------------------------------------------------------

    @whole
    async def take(self, now: float) -> BatchRecord | None:
        """A batch that has something to be done to it as a whole, for this gateway alone."""
        unfinished = sa.exists().where(jobs.c.batch_id == batches.c.id, jobs.c.ended_at.is_(None))
        due = sa.or_(
            batches.c.status.in_((BatchStatus.VALIDATING, BatchStatus.FINALIZING, BatchStatus.CANCELLING)),
            sa.and_(
                batches.c.status == BatchStatus.IN_PROGRESS, sa.or_(batches.c.expires_at <= now, sa.not_(unfinished))
            ),
        )
        free = (batches.c.ended_at.is_(None), sa.or_(batches.c.owner.is_(None), batches.c.lease_until < now), due)
        first = sa.select(batches.c.id).where(*free).order_by(batches.c.created_at).limit(1)
        async with self._database.session() as connection:  # mostly there is none, which is no reason to lock anything
            if (await connection.execute(first)).first() is None:
                return None
        async with self._database.begin() as connection:
            found = (await connection.execute(first.with_for_update(skip_locked=True))).scalar_one_or_none()
            if found is None:
                return None
            change = sa.update(batches).where(batches.c.id == found)
            change = change.values(owner=self._owner, lease_until=now + self._lease, attempt=batches.c.attempt + 1)
            return _batch((await connection.execute(change.returning(*RECORD_OF_BATCH))).one())

    async def renew(self, record: BatchRecord, now: float) -> bool:
        """False if the batch is no longer this attempt's."""
        return await self.change(record, lease_until=now + self._lease)

    @whole
    async def change(self, record: BatchRecord, **values: object) -> bool:
        """Columns of the batch, under the attempt. False if it is no longer this attempt's."""
        change = sa.update(batches).where(batches.c.id == record.id, batches.c.attempt == record.attempt)
        async with self._database.begin() as connection:
            return bool((await connection.execute(change.values(**values))).rowcount)

    async def end_lines(self, record: BatchRecord, status: JobStatus, now: float) -> None:
        """Those that have not ended."""
        some = sa.select(jobs.c.id).where(jobs.c.batch_id == record.id, jobs.c.ended_at.is_(None)).limit(AT_ONCE)
        change = sa.update(jobs).where(jobs.c.id.in_(some), jobs.c.ended_at.is_(None))
        await self._piecemeal(change.values(status=status, ended_at=now, owner=None, lease_until=None, nbytes=0))

    async def lines(self, record: BatchRecord, after: int, limit: int) -> Sequence[JobRecord]:
        """In order, from the one behind line ``after`` on."""
        wanted = sa.select(*RECORD).where(jobs.c.batch_id == record.id, jobs.c.line > after)
        async with self._database.session() as connection:
            return [record_of(row) for row in await connection.execute(wanted.order_by(jobs.c.line).limit(limit))]

    @whole
    async def lose_line(self, job_id: str, error: bytes) -> None:
        """What it made is gone: it has failed after all."""
        change = sa.update(jobs).where(jobs.c.id == job_id)
        async with self._database.begin() as connection:
            await connection.execute(change.values(status=JobStatus.FAILED, error=error, outputs="", nbytes=0))

    async def with_leavings(self) -> Sequence[BatchRecord]:
        """Batches that are over and still have lines."""
        lines = sa.exists().where(jobs.c.batch_id == batches.c.id)
        wanted = sa.select(*RECORD_OF_BATCH).where(batches.c.ended_at.is_not(None), lines)
        async with self._database.session() as connection:
            return [_batch(row) for row in await connection.execute(wanted)]

    async def delete_lines(self, record: BatchRecord) -> None:
        some = sa.select(jobs.c.id).where(jobs.c.batch_id == record.id).limit(AT_ONCE)
        await self._piecemeal(sa.delete(jobs).where(jobs.c.id.in_(some)))

    @whole
    async def _piecemeal(self, change: sa.Update | sa.Delete) -> None:
        """``change`` is of some rows that it then no longer finds. Other writers get their turns in between."""
        while True:
            async with self._database.begin() as connection:
                if not (await connection.execute(change)).rowcount:
                    return

    @whole
    async def delete_old(self, before: float) -> None:
        async with self._database.begin() as connection:
            await connection.execute(sa.delete(batches).where(batches.c.ended_at < before))

    @whole
    async def abandon(self, owner: str) -> None:
        """Let go of all that ``owner`` works on, which is known to be dead, or about to end."""
        change = sa.update(batches).where(batches.c.owner == owner, batches.c.ended_at.is_(None))
        async with self._database.begin() as connection:
            await connection.execute(change.values(owner=None))


def _batch(row: sa.Row[Any]) -> BatchRecord:
    return BatchRecord(**{**row._mapping, "status": BatchStatus(row.status)})
