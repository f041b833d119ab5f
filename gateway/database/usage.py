"""What was used: a record per request, and per key and month the device-seconds that its budget is measured by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import (
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    Row,
    String,
    Table,
    case,
    delete,
    func,
    select,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from gateway.database.database import Database
from gateway.database.tables import insert, metadata
from gateway.database.unbroken import whole
from wire.record import record

DAY_SECONDS = 86_400

KEYS_AT_ONCE = 1000
"""In one query; databases bound their number."""

ATTEMPT = 0
"""Status of an attempt at a job that another one followed: its use counts, and it is no request."""

STAGE_SECONDS = ("encoder_seconds", "dit_seconds", "decoder_seconds", "enhancer_seconds", "upscaler_seconds")
"""What each stage took of devices."""

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
    Column("enhancer_seconds", Double, nullable=False, server_default="0"),
    Column("upscaler_seconds", Double, nullable=False, server_default="0"),
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


class UsageRecord(msgspec.Struct, frozen=True):
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
    """``generations``, ``edits``, or ``batches``: the start of one, whose lines have records of their own."""
    status: int
    """Of HTTP; 499 where the client left; ``ATTEMPT``."""
    code: str
    """Of the error, also of one in mid-stream, whose status is 200; empty without one."""
    images: int
    """Finished."""
    encoder_seconds: float
    dit_seconds: float
    decoder_seconds: float
    enhancer_seconds: float = 0.0
    upscaler_seconds: float = 0.0

    @property
    def device_seconds(self) -> float:
        model = self.encoder_seconds + self.dit_seconds + self.decoder_seconds
        return model + self.enhancer_seconds + self.upscaler_seconds


@record(frozen=True, slots=True)
class UsageSum:
    """Of one tenant on one day (UTC), or of one of its keys."""

    day: date
    tenant: str
    requests: int
    failed: int
    """Of these, with an error."""
    images: int
    encoder_seconds: float
    dit_seconds: float
    decoder_seconds: float
    enhancer_seconds: float = 0.0
    upscaler_seconds: float = 0.0
    key: str = ""
    """Empty where all of a tenant's are summed."""

    @property
    def device_seconds(self) -> float:
        model = self.encoder_seconds + self.dit_seconds + self.decoder_seconds
        return model + self.enhancer_seconds + self.upscaler_seconds


@record(frozen=True, slots=True)
class UsageSelection:
    """Which records are summed: of the days from ``first`` to ``last``; None is all."""

    first: date
    last: date
    tenant: str | None = None
    key: str | None = None
    model: str | None = None
    by_key: bool = False
    """A sum for each key, rather than one for the tenant."""


def month_of(unix_seconds: float) -> int:
    """Months since year 0, in UTC."""
    return _month_of_day(int(unix_seconds // DAY_SECONDS))


@lru_cache(maxsize=64)
def _month_of_day(day: int) -> int:
    when = datetime.fromtimestamp(day * DAY_SECONDS, UTC)
    return when.year * 12 + when.month - 1


class Usage:
    """Every method raises ``DatabaseError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def write(self, records: Sequence[UsageRecord]) -> None:
        """All or, with an error, none; those that are there already are left as they are and not charged again."""
        try:
            await self._database.write(lambda connection: _add(connection, records))
        except IntegrityError:
            await self._database.write(lambda connection: _add_new(connection, records))

    async def spent(self, keys: Collection[str], month: int) -> dict[str, float]:
        """Device-seconds of those that have spent any."""
        wanted = select(spending.c.key, spending.c.device_seconds).where(spending.c.month == month)

        def look(connection: Connection) -> dict[str, float]:
            found: dict[str, float] = {}
            for some in _batched(sorted(keys), KEYS_AT_ONCE):
                rows = connection.execute(wanted.where(spending.c.key.in_(some)))
                found |= {row.key: row.device_seconds for row in rows}
            return found

        return await self._database.read(look)

    async def sums(self, selection: UsageSelection, limit: int) -> list[UsageSum]:
        """By day and tenant, in that order, then by key if asked for; the first ``limit``."""
        columns = usage.c
        names = ("images", *STAGE_SECONDS)
        requests = func.sum(case((columns.status != ATTEMPT, 1), else_=0))
        failed = func.sum(case((columns.code != "", 1), else_=0))
        groups = (columns.day, columns.tenant, *((columns.key,) if selection.by_key else ()))
        sums = (requests, failed, *(func.sum(columns[name]) for name in names))
        query = (
            select(columns.day, columns.tenant, *sums, *groups[2:])
            .where(columns.day.between(_day(selection.first), _day(selection.last)))
            .group_by(*groups)
            .order_by(*groups)
            .limit(limit)
        )
        for name in ("tenant", "key", "model"):
            wanted = getattr(selection, name)
            if wanted is not None:
                query = query.where(columns[name] == wanted)
        async with self._database.session() as connection:
            return [_sum(row) for row in await connection.execute(query)]

    @whole
    async def forget(self, before: float, limit: int = 1000) -> int:
        """Delete up to ``limit`` records of the days before that Unix time, and sums of months that ended before it;
        how many records it was."""
        old = select(usage.c.id).where(usage.c.day < int(before // DAY_SECONDS)).limit(limit).scalar_subquery()
        async with self._database.begin() as connection:
            await connection.execute(delete(spending).where(spending.c.month < month_of(before)))
            return (await connection.execute(delete(usage).where(usage.c.id.in_(old)))).rowcount


def _add(connection: Connection, records: Sequence[UsageRecord]) -> None:
    """As if all were new, which they are but after a failure. Raises ``IntegrityError``."""
    # By tenant, as two of the indexes are: neighbours take half the time.
    rows = sorted(map(_tuple, records), key=_tenant)
    # As the driver takes them: SQLAlchemy's way from dictionaries there takes as long as the database itself.
    connection.exec_driver_sql(_insertion(connection.dialect), rows)
    _charge(connection, records)


def _add_new(connection: Connection, records: Sequence[UsageRecord]) -> None:
    """At ten times the cost: each row has to say whether it is new."""
    once = {record.id: record for record in reversed(records)}
    rows = insert(connection.dialect, usage).values([_row(record) for record in once.values()])
    new = connection.execute(rows.on_conflict_do_nothing(index_elements=["id"]).returning(usage.c.id))
    _charge(connection, [once[row.id] for row in new])


@cache
def _insertion(dialect: Dialect) -> str:
    """For rows whose values are in the order of the table's columns."""
    return str(usage.insert().compile(dialect=dialect))


@cache
def _charging(dialect: Dialect) -> str:
    """The same, for what is added to the sums."""
    row = insert(dialect, spending)
    total = spending.c.device_seconds + row.excluded.device_seconds
    more = row.on_conflict_do_update(index_elements=["key", "month"], set_={"device_seconds": total})
    return str(more.compile(dialect=dialect))


def _tuple(record: UsageRecord) -> tuple[Any, ...]:
    """In the order of the table's columns, which is that of the fields but for the day."""
    values = msgspec.structs.astuple(record)
    return (*values[:2], int(record.created // DAY_SECONDS), *values[2:])


_tenant = itemgetter(usage.columns.keys().index("tenant"))


def _row(record: UsageRecord) -> dict[str, object]:
    return msgspec.structs.asdict(record) | {"day": int(record.created // DAY_SECONDS)}


def _charge(connection: Connection, records: Iterable[UsageRecord]) -> None:
    # In one order everywhere, so that two gateways never wait for each other's rows.
    rows = [(*account, seconds) for account, seconds in sorted(charges(records).items())]
    if rows:
        connection.exec_driver_sql(_charging(connection.dialect), rows)


def charges(records: Iterable[UsageRecord]) -> dict[tuple[str, int], float]:
    """Device-seconds by key and month."""
    sums: defaultdict[tuple[str, int], float] = defaultdict(float)
    for each in records:
        sums[each.key, month_of(each.created)] += each.device_seconds
    return sums


def _batched(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _day(day: date) -> int:
    return day.toordinal() - date(1970, 1, 1).toordinal()


def _sum(row: Row[Any]) -> UsageSum:
    day, tenant, *numbers = tuple(row)
    return UsageSum(date.fromordinal(date(1970, 1, 1).toordinal() + day), tenant, *numbers)
