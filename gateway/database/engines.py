"""Where the database is, and how connections to it are made."""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.database.errors import DatabaseRefused
from gateway.settings import Settings

FILE_NAME = "gateway.sqlite3"

CONNECT_SECONDS = 5.0
LOCK_SECONDS = 5.0
"""How long a statement waits for another process's transaction."""
CHECKPOINT_WAIT_SECONDS = 0.1
"""For readers to end, while all writers wait; there is another checkpoint soon."""
TRANSACTION_SECONDS = 10.0
"""For a whole ``session()`` or ``begin()``, the wait for a connection included: nothing hangs on a database."""

SYNCHRONOUS = "FULL"
"""An answer may be sent once its transaction is committed, and a power failure must not undo that. NORMAL would save
the one fsync per commit, of which there are few: usage is written in batches."""

READERS = 4
"""Connections that read an SQLite file; each is a thread."""
CONNECTIONS = 10
"""To PostgreSQL, which allows a hundred unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Engines:
    reader: AsyncEngine
    writer: AsyncEngine
    """SQLite: one connection, so that the process's writers queue here, in order, rather than in SQLite's busy loop."""
    migrator: AsyncEngine
    """Its statements may take long."""
    where: str
    """For messages, without a password."""
    thread_writer: Engine | None = None
    """SQLite: writes as ``writer`` does, in a thread (``gateway.database.thread_writer``), never at the same time."""
    thread_reader: Engine | None = None
    """SQLite: reads in a thread, of which there is one."""

    async def dispose(self) -> None:
        for engine in (self.reader, self.writer, self.migrator):
            await engine.dispose()
        if self.thread_reader is not None:
            self.thread_reader.dispose()


def engines(settings: Settings) -> Engines:
    """Nothing is connected yet. Raises ``DatabaseRefused`` or ``InvalidSettings``."""
    if settings.database_url is not None:
        return _postgres(settings.database_url.get_secret_value())
    return _sqlite(settings.state_folder() / FILE_NAME)


def _sqlite(path: Path) -> Engines:
    with suppress(OSError):  # what is wrong with the folder is said when the file is opened
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # SQLite gives its other files the same mode

    def engine(*, writes: bool, **pool: Any) -> AsyncEngine:
        # Every transaction ends by itself, so a rollback when its connection is given back would only cost the way to
        # the connection's thread.
        made = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_reset_on_return=None, **pool)
        _listen(made.sync_engine, writes=writes)
        return made

    def in_thread(*, writes: bool) -> Engine:
        made = create_engine(
            f"sqlite:///{path}",
            connect_args={"check_same_thread": False},  # another one closes it
            pool_reset_on_return=None,
            pool_size=1,
            max_overflow=0,
        )
        _listen(made, writes=writes)
        return made

    return Engines(
        reader=engine(writes=False, pool_size=READERS, max_overflow=0),
        writer=engine(writes=True, pool_size=1, max_overflow=0),
        migrator=engine(writes=True, poolclass=NullPool),
        where=f"the database {path}",
        thread_writer=in_thread(writes=True),
        thread_reader=in_thread(writes=False),
    )


def _listen(engine: Engine, *, writes: bool) -> None:
    event.listen(engine, "connect", _pragmas(writes=writes))
    # Python's own transactions begin with the first INSERT, too late for a read that decides about it and not at all
    # for DDL: so they are off, and begun here. A writer takes its lock at once, since a transaction that first reads
    # and then finds another writer ahead of it could only fail.
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
    event.listen(engine, "begin", lambda connection: _execute(connection, begin))


async def checkpoint(writer: AsyncEngine) -> None:
    """Write SQLite's log into its file, and cut it off, unless somebody is in the way. Writers wait for as long as that
    takes."""
    if writer.dialect.name != "sqlite":
        return
    async with writer.connect() as checked_out:
        # The driver's own connection, as SQLAlchemy begins a transaction, in which this is not possible.
        connection = (await checked_out.get_raw_connection()).driver_connection
        assert connection is not None  # noqa: S101 # it was just checked out
        await connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_WAIT_SECONDS * 1000:.0f}")
        try:
            await connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname.split("_")[1] not in ("BUSY", "LOCKED"):
                raise
        finally:
            await connection.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000:.0f}")


def _pragmas(*, writes: bool) -> Callable[[DBAPIConnection, object], None]:
    def set_pragmas(connection: DBAPIConnection, _: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000:.0f}")
        cursor.execute("PRAGMA foreign_keys = ON")
        if writes:
            cursor.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
            cursor.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            cursor.execute(
                "PRAGMA secure_delete = ON"
            )  # or a deleted prompt stays in the file; not every build's default
        else:
            cursor.execute("PRAGMA query_only = ON")  # a write here would escape the queue of writers
        cursor.close()

    return set_pragmas


def _execute(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement)


def _postgres(url: str) -> Engines:
    if importlib.util.find_spec("asyncpg") is None:
        raise DatabaseRefused(
            "DISAGFUSION_DATABASE_URL names PostgreSQL, whose driver is not installed: "
            "pip install 'disagfusion[postgres]'"
        )
    limits = {"lock_timeout": f"{LOCK_SECONDS:g}s", "statement_timeout": f"{TRANSACTION_SECONDS:g}s"}
    pooled = _postgres_engine(
        url,
        # A gateway that dies in a transaction leaves its rows locked until the server notices: this is how soon.
        {**limits, "idle_in_transaction_session_timeout": f"{TRANSACTION_SECONDS:g}s"},
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_pre_ping=True,  # after a restart of the server, one round trip instead of one failure per connection
    )
    return Engines(
        reader=pooled,
        writer=pooled,
        migrator=_postgres_engine(url, {}, poolclass=NullPool),
        where=f"the database at {urlsplit(url).netloc.rpartition('@')[2] or 'its default address'}",
    )


def _postgres_engine(url: str, server_settings: dict[str, str], **pool: Any) -> AsyncEngine:
    import asyncpg  # an extra

    async def connect() -> Any:
        # asyncpg reads the url itself, with all that libpq takes in one (sslmode, several hosts, passfile).
        try:
            return await asyncpg.connect(
                url, timeout=CONNECT_SECONDS, server_settings={"application_name": "disagfusion", **server_settings}
            )
        except (asyncpg.exceptions.ClientConfigurationError, ValueError) as error:
            raise DatabaseRefused(f"DISAGFUSION_DATABASE_URL: {error}") from error

    return create_async_engine("postgresql+asyncpg://", async_creator=connect, **pool)
