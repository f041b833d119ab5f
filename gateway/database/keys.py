"""API keys: hashed at rest, and never deleted, so that whose work something was can be told for ever."""

from __future__ import annotations

import secrets as random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Integer,
    LargeBinary,
    Row,
    String,
    Table,
    bindparam,
    or_,
    select,
)
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.accounts.caller import Caller, Limits, Scope
from gateway.database.database import Database
from gateway.database.tables import metadata
from gateway.database.unbroken import whole

MAX_NAME = 200
"""Characters of a tenant's or a key's name."""

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(MAX_NAME), nullable=False, index=True),
    Column("name", String(MAX_NAME), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("models", JSON, nullable=False),
    Column("requests_per_minute", Integer),
    Column("images_per_minute", Integer),
    Column("concurrent_requests", Integer),
    Column("device_seconds_per_month", Double),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("last_used", Double),
    Column("revoked", Double),
)

key_changes = Table(
    "key_changes",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
)
"""One row, counted up with every change that callers have to feel: gateways read the keys again when it has moved."""

_COUNT = select(key_changes.c.count)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """Times are Unix times."""

    caller: Caller
    name: str
    """What it is for, in its maker's words."""
    digest: bytes
    created: float
    expires: float | None
    last_used: float | None
    revoked: float | None


class StoredKeys:
    """Every method raises ``DatabaseError``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def create(self, caller: Caller, name: str, digest: bytes, created: float, expires: float | None) -> str:
        """The id of a new key of ``caller``, whose own ``key`` says nothing."""
        key = f"key_{random.token_hex(12)}"
        row = {
            "id": key,
            "tenant": caller.tenant,
            "name": name,
            "digest": digest,
            "scopes": sorted(caller.scopes),
            "models": sorted(caller.models),
            "created": created,
            "expires": expires,
            **asdict(caller.limits),
        }
        async with self._database.begin() as connection:
            await connection.execute(keys.insert(), row)
            await _count_change(connection)
        return key

    @whole
    async def revoke(self, key: str, now: float) -> KeyRecord | None:
        """The key as it was before; None if there is none of that id. A revoked key stays as it is."""
        async with self._database.begin() as connection:
            row = (await connection.execute(keys.select().where(keys.c.id == key))).one_or_none()
            if row is None:
                return None
            if row.revoked is None:
                await connection.execute(keys.update().where(keys.c.id == key).values(revoked=now))
                await _count_change(connection)
        return _record(row)

    async def all(self, tenant: str | None = None) -> list[KeyRecord]:
        """Oldest first."""
        query = keys.select().order_by(keys.c.created, keys.c.id)
        if tenant is not None:
            query = query.where(keys.c.tenant == tenant)
        async with self._database.session() as connection:
            return _records((await connection.execute(query)).all())

    async def changed_since(self, change: int | None) -> tuple[int, list[KeyRecord]] | None:
        """The count of changes, and all keys; None if it is still ``change``."""

        def look(connection: Connection) -> tuple[int, list[KeyRecord]] | None:
            # The count first: keys that are newer than it are only read again.
            count = connection.scalar(_COUNT)
            if count == change:
                return None
            return count or 0, _records(connection.execute(keys.select()).all())

        return await self._database.read(look)

    @whole
    async def note_used(self, used: Mapping[str, float]) -> None:
        """``used``: id → when, kept where it is the latest, as several gateways may serve one key."""
        when = bindparam("when", type_=Double)
        older = or_(keys.c.last_used.is_(None), keys.c.last_used < when)
        update = keys.update().where(keys.c.id == bindparam("key"), older).values(last_used=when)
        async with self._database.begin() as connection:
            # In one order, or two gateways could wait for each other's rows.
            await connection.execute(update, [{"key": key, "when": used[key]} for key in sorted(used)])


async def _count_change(connection: AsyncConnection) -> None:
    await connection.execute(key_changes.update().values(count=key_changes.c.count + 1))


def _records(rows: Sequence[Row[Any]]) -> list[KeyRecord]:
    return [_record(row) for row in rows]


def _record(row: Row[Any]) -> KeyRecord:
    limits = Limits(
        row.requests_per_minute, row.images_per_minute, row.concurrent_requests, row.device_seconds_per_month
    )
    # A scope that a later version has added, and its predecessor does not know, opens nothing here.
    scopes = frozenset(Scope(scope) for scope in row.scopes if scope in set(Scope))
    caller = Caller(row.tenant, row.id, scopes, frozenset(row.models), limits)
    return KeyRecord(caller, row.name, row.digest, row.created, row.expires, row.last_used, row.revoked)
