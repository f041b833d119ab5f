"""Who answers the request of an ``Idempotency-Key``, of all gateways on this database; and the answers of late.

A row is a claim first: its owner is making the answer, and says so again and again. A claim whose lease has run out is
anybody's. Later the row is the answer itself, whose bytes lie in the file store if there are many.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Executable,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    bindparam,
    delete,
    select,
    update,
)
from sqlalchemy import func as sql
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.database.database import Database
from gateway.database.tables import insert, metadata
from gateway.database.unbroken import whole

answers = Table(
    "answers",
    metadata,
    Column("id", LargeBinary(32), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("owner", String(32), nullable=False),
    Column("lease_ends", Double, nullable=False),
    Column("waited_for", Double, nullable=False),
    Column("status", Integer),  # none yet: it is being made
    Column("headers", JSON(none_as_null=True)),
    Column("error_code", String(64)),
    Column("object", String(100)),
    Column("nbytes", BigInteger, nullable=False),
    Column("expires", Double),
    Column("body", LargeBinary),
    Index("ix_answers_expires_nbytes", "expires", "nbytes"),
)

# Made once, like that of new claims: to put it together takes longer than to carry it out.
_KEEP = update(answers).where(
    answers.c.id == bindparam("key"), answers.c.owner == bindparam("maker"), answers.c.status.is_(None)
)


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer. Its body is ``body``, or in the file store as ``object``."""

    digest: bytes
    """Of the request."""
    request_id: str
    status: int
    headers: Sequence[tuple[str, str]]
    error_code: str | None
    body: bytes | None
    object: str | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class UnderWay:
    """Another owner makes it."""

    digest: bytes


class Answers:
    """Times are Unix times, and given, so that one clock decides. Every method raises ``DatabaseError``."""

    def __init__(self, database: Database, owner: str) -> None:
        """``owner`` is another one for each process."""
        self._database = database
        self._owner = owner
        self._new: Executable | None = None
        """Of claims nobody has made before; which SQL that is, the first connection tells."""

    @whole
    async def claim(
        self, key: bytes, digest: bytes, request_id: str, now: float, lease_ends: float
    ) -> Kept | UnderWay | None:
        """None: it is the caller's to make. Asking is a sign that somebody waits."""
        mine = {
            "digest": digest,
            "request_id": request_id,
            "owner": self._owner,
            "lease_ends": lease_ends,
            "waited_for": now,
            "status": None,
            "headers": None,
            "error_code": None,
            "object": None,  # what it named is an orphan, which is swept
            "nbytes": 0,
            "expires": None,
            "body": None,
        }

        def claim(connection: Connection) -> Kept | UnderWay | None:
            if self._new is None:
                self._new = insert(connection.dialect, answers).on_conflict_do_nothing().returning(answers.c.id)
            if connection.execute(self._new, {"id": key, **mine}).first() is not None:
                return None
            row = connection.execute(select(answers).where(answers.c.id == key).with_for_update()).one_or_none()
            if row is None:  # deleted in between: the next time it can be claimed
                return UnderWay(digest)
            if row.status is not None and row.expires > now:
                return _kept(row)
            if row.status is None and row.lease_ends > now and row.owner != self._owner:
                connection.execute(update(answers).where(answers.c.id == key).values(waited_for=now))
                return UnderWay(row.digest)
            connection.execute(update(answers).where(answers.c.id == key).values(**mine))
            return None

        return await self._database.write(claim)

    @whole
    async def renew(self, keys: Collection[bytes], lease_ends: float) -> None:
        longer = update(answers).where(self._mine(keys)).values(lease_ends=lease_ends)
        await self._database.write(lambda connection: connection.execute(longer))

    async def waited_for(self, key: bytes) -> float:
        """When another gateway last asked for it; 0 if there is no such claim."""
        async with self._database.session() as connection:
            return (await connection.execute(select(answers.c.waited_for).where(answers.c.id == key))).scalar() or 0.0

    @whole
    async def keep(self, key: bytes, kept: Kept, expires: float) -> bool:
        """False if the claim is no longer the caller's."""
        values = {
            "key": key,
            "maker": self._owner,
            "status": kept.status,
            "headers": [list(pair) for pair in kept.headers],
            "error_code": kept.error_code,
            "object": kept.object,
            "nbytes": kept.nbytes,
            "body": kept.body,
            "expires": expires,
        }
        return await self._database.write(lambda connection: bool(connection.execute(_KEEP, values).rowcount))

    @whole
    async def release(self, key: bytes) -> None:
        """Nothing came of a claim."""
        claim = delete(answers).where(self._mine([key]))
        await self._database.write(lambda connection: connection.execute(claim))

    @whole
    async def forget(self, key: bytes, lost: Kept) -> None:
        """An answer whose object is gone."""
        gone = delete(answers).where(answers.c.id == key, answers.c.object == lost.object)
        await self._database.write(lambda connection: connection.execute(gone))

    @whole
    async def sweep(self, now: float, abandoned: float, max_bytes: int) -> tuple[list[str], int]:
        """Delete what has expired, claims whose lease ended before ``abandoned``, and, the oldest first, what is beyond
        ``max_bytes``. The names of their objects, and how many had not expired."""
        gone: list[str] = []
        early = 0
        async with self._database.begin() as connection:
            await connection.execute(
                delete(answers).where(answers.c.status.is_(None), answers.c.lease_ends < abandoned)
            )
            expired = delete(answers).where(answers.c.expires <= now).returning(answers.c.object)
            gone += (await connection.execute(expired)).scalars()
            excess = (
                await connection.execute(select(sql.coalesce(sql.sum(answers.c.nbytes), 0)))
            ).scalar_one() - max_bytes
            while excess > 0:
                row = await _oldest(connection)
                if row is None:
                    break
                await connection.execute(delete(answers).where(answers.c.id == row.id))
                excess -= row.nbytes
                early += 1
                gone.append(row.object)
        return [name for name in gone if name is not None], early

    async def objects(self) -> set[str]:
        """All that are named."""
        async with self._database.session() as connection:
            found = await connection.execute(select(answers.c.object).where(answers.c.object.is_not(None)))
            return set(found.scalars())

    def _mine(self, keys: Collection[bytes]) -> Any:
        return answers.c.id.in_(keys) & (answers.c.owner == self._owner) & answers.c.status.is_(None)


async def _oldest(connection: AsyncConnection) -> Any:
    oldest = select(answers.c.id, answers.c.nbytes, answers.c.object)
    return (
        await connection.execute(oldest.where(answers.c.expires.is_not(None)).order_by(answers.c.expires).limit(1))
    ).first()


def _kept(row: Any) -> Kept:
    headers = [(name, value) for name, value in row.headers]
    return Kept(row.digest, row.request_id, row.status, headers, row.error_code, row.body, row.object, row.nbytes)
