"""What was used: a record per request, and per key and month the device-seconds that its budget is measured by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Column, Double, Index, Integer, Row, String, Table, case, delete, func, select

from gateway.database.database import Database
from gateway.database.tables import insert, metadata

DAY_SECONDS = 86_400

usage = Table(
    "usage",
    metadata,
    Column("id", String, primary_key=True),
    Column("created", Double, nullable=False),
    Column("day", Integer, nullable=False),  # since 1970, in UTC
    Column("tenant", String, nullable=False),
    Column("key", String, nullable=False),
    Column("model", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("status", Integer, nullable=False),
    Column("code", String, nullable=False),
    Column("images", Integer, nullable=False),
    Column("encoder_seconds", Double, nullable=False),
    Column("dit_seconds", Double, nullable=False),
    Column("decoder_seconds", Double, nullable=False),
    Index("ix_usage_day", "day", "tenant"),
    Index("ix_usage_tenant", "tenant", "day"),
)

spending = Table(
    "spending",
    metadata,
    Column("key", String, primary_key=True),
    Column("month", Integer, primary_key=True, autoincrement=False),  # since year 0, in UTC
    Column("device_seconds", Double, nullable=False),
)
"""Sums of ``usage``, so that a budget is one look and outlives the records."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """Of one request, or one job."""

    id: str
    """Whatever is written twice under one id counts once."""
    created: float
    """Unix time of its arrival."""
    tenant: str
    key: str
    model: str
    """Empty if it was refused before that was known."""
    endpoint: str
    """``generations`` or ``edits``."""
    status: int
    """Of HTTP; 499 where the client left."""
    code: str
    """Of the error, also of one in mid-stream, whose status is 200; empty without one."""
    images: int
    """Finished."""
    encoder_seconds: float
    dit_seconds: float
    decoder_seconds: float

    @property
    def device_seconds(self) -> float:
        return self.encoder_seconds + self.dit_seconds + self.decoder_seconds


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Of one tenant on one day (UTC)."""

    day: date
    tenant: str
    requests: int
    failed: int
    """Of these, with an error."""
    images: int
    encoder_seconds: float
    dit_seconds: float
    decoder_seconds: float


@dataclass(frozen=True, slots=True)
class UsageSelection:
    """Which records are summed: of the days from ``first`` to ``last``; None is all."""

    first: date
    last: date
    tenant: str | None = None
    key: str | None = None
    model: str | None = None


def month_of(unix_seconds: float) -> int:
    """Months since year 0, in UTC."""
    when = datetime.fromtimestamp(unix_seconds, UTC)
    return when.year * 12 + when.month - 1


class Usage:
    """Every method raises ``DatabaseError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, records: Sequence[UsageRecord]) -> None:
        """All or, with an error, none; those that are there already are left as they are and not charged again."""
        once = {record.id: record for record in reversed(records)}
        rows = [asdict(record) | {"day": int(record.created // DAY_SECONDS)} for record in once.values()]
        async with self._database.begin() as connection:
            added = insert(connection, usage).values(rows).on_conflict_do_nothing(index_elements=["id"])
            new = (await connection.execute(added.returning(usage.c.id))).scalars()
            charges: defaultdict[tuple[str, int], float] = defaultdict(float)
            for record in map(once.__getitem__, new):
                charges[record.key, month_of(record.created)] += record.device_seconds
            # In one order everywhere, so that two gateways never wait for each other's rows.
            for (key, month), seconds in sorted(charges.items()):
                row = insert(connection, spending).values(key=key, month=month, device_seconds=seconds)
                total = spending.c.device_seconds + row.excluded.device_seconds
                more = row.on_conflict_do_update(index_elements=["key", "month"], set_={"device_seconds": total})
                await connection.execute(more)

    async def spent(self, key: str, month: int) -> float:
        """Device-seconds."""
        wanted = select(spending.c.device_seconds).where(spending.c.key == key, spending.c.month == month)
        async with self._database.session() as connection:
            return float((await connection.execute(wanted)).scalar_one_or_none() or 0.0)

    async def sums(self, selection: UsageSelection, limit: int) -> list[UsageSum]:
        """By day and tenant, in that order; the first ``limit``."""
        columns = usage.c
        names = ("images", "encoder_seconds", "dit_seconds", "decoder_seconds")
        failed = func.sum(case((columns.code != "", 1), else_=0))
        query = (
            select(columns.day, columns.tenant, func.count(), failed, *(func.sum(columns[name]) for name in names))
            .where(columns.day.between(_day(selection.first), _day(selection.last)))
            .group_by(columns.day, columns.tenant)
            .order_by(columns.day, columns.tenant)
            .limit(limit)
        )
        for name in ("tenant", "key", "model"):
            wanted = getattr(selection, name)
            if wanted is not None:
                query = query.where(columns[name] == wanted)
        async with self._database.session() as connection:
            return [_sum(row) for row in await connection.execute(query)]

    async def forget(self, before: float, limit: int = 1000) -> int:
        """Delete up to ``limit`` records of the days before that Unix time, and sums of months that ended before it;
        how many records it was."""
        old = select(usage.c.id).where(usage.c.day < int(before // DAY_SECONDS)).limit(limit).scalar_subquery()
        async with self._database.begin() as connection:
            await connection.execute(delete(spending).where(spending.c.month < month_of(before)))
            return (await connection.execute(delete(usage).where(usage.c.id.in_(old)))).rowcount


def _day(day: date) -> int:
    return day.toordinal() - date(1970, 1, 1).toordinal()


def _sum(row: Row[Any]) -> UsageSum:
    day, tenant, *numbers = tuple(row)
    return UsageSum(date.fromordinal(date(1970, 1, 1).toordinal() + day), tenant, *numbers)
