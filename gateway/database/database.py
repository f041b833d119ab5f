"""The database as the rest of this room uses it: transactions that end in time, and one word on whether it works."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.database.engines import TRANSACTION_SECONDS, Engines, checkpoint, engines
from gateway.database.errors import CONNECTION, DatabaseError, DatabaseRefused, Trouble, failures, trouble_of
from gateway.database.migrate import migrate
from gateway.database.thread_writer import ThreadWriter
from gateway.settings import Settings

RETRY_SECONDS = 1.0
"""After a connection failed, for so long nobody tries again: all are told at once what the last one was told."""

REMIND_SECONDS = 60.0
"""Between two lines that say that the database still does not work."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Database:
    """To be opened once, before anything is asked of it, and closed at the end."""

    def __init__(
        self,
        settings: Settings,
        *,
        seconds: float = TRANSACTION_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connects to nothing yet. ``seconds`` are for one transaction. Raises ``DatabaseRefused`` or
        ``InvalidSettings``."""
        self._engines: Engines = engines(settings)
        self._seconds = seconds
        self._clock = clock
        self._migrated = False
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        """SQLite's two connections that write take turns here, rather than in its busy loop."""
        engine = self._engines.thread_writer
        self._thread_writer = ThreadWriter(engine, self._writing) if engine is not None else None
        self._reading = ThreadPoolExecutor(1, "database reads")  # has no thread until it is used
        self._failure: DatabaseError | None = None
        self._failed_in: AsyncEngine | None = None
        self._next_try = float("-inf")
        self._failed_times = 0
        """Since it last worked."""
        self._said_at = float("-inf")

    @property
    def where(self) -> str:
        """For messages, without a password."""
        return self._engines.where

    @property
    def healthy(self) -> bool:
        """Whether the latest transaction worked."""
        return self._migrated and self._failure is None

    async def open(self) -> None:
        """Migrate, where that is needed. Raises ``DatabaseRefused`` if the database cannot be used until somebody does
        something about it, and ``DatabaseError`` if it may be usable later: ``run`` goes on trying then."""
        async with self._opening:
            if self._migrated:
                return
            with self._watched(self._engines.writer):
                await migrate(self._engines.migrator, self.where)
            self._migrated = True
            self._recovered(self._engines.writer)

    async def run(self) -> None:
        """Open what could not be opened at start, as soon as it can be; returns when that is done."""
        while not self._migrated:
            try:
                await self.open()
            except DatabaseError:  # said once, by ``_watched``
                await asyncio.sleep(RETRY_SECONDS)
            except DatabaseRefused as error:
                log.error("%s; the gateway serves without a database until it is started again", error)  # noqa: TRY400 # no defect
                return

    async def close(self) -> None:
        if self._thread_writer is not None:
            self._thread_writer.close()
        self._reading.shutdown()
        await self._engines.dispose()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that reads. Raises ``DatabaseError``."""
        async with self._transaction(self._engines.reader) as connection:
            yield connection

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """The same for a transaction that is one function, which must not raise but what the database does. On SQLite
        it goes to a thread and back once, as with ``write``: for what is asked again and again."""
        engine = self._engines.thread_reader
        if engine is None:
            async with self.session() as connection:
                return await connection.run_sync(work)
        self._refuse_early(self._engines.reader)
        with self._watched(self._engines.reader):
            async with asyncio.timeout(self._seconds):
                found = await asyncio.get_running_loop().run_in_executor(self._reading, _read, engine, work)
        self._recovered(self._engines.reader)
        return found

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write: committed on leaving the block, undone by an exception. Keep it short, and
        await nothing in it but the database: on SQLite all writers wait for it. Raises ``DatabaseError``, and
        SQLAlchemy's ``IntegrityError``, which is for the module that knows the constraint."""
        async with self._transaction(self._engines.writer) as connection:
            yield connection

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """The same for a transaction that is one function, which must not raise but what the database does.

        On SQLite it goes to a thread and back once, and is committed with others that wait; with ``begin`` every
        statement goes there several times. Raises as ``begin`` does.
        """
        if self._thread_writer is None:
            async with self.begin() as connection:
                return await connection.run_sync(work)
        self._refuse_early(self._engines.writer)
        with self._watched(self._engines.writer):
            async with asyncio.timeout(self._seconds):
                done = await self._thread_writer.run(work)
        self._recovered(self._engines.writer)
        return done

    async def wipe(self) -> None:
        """Let what was deleted vanish from the disk: SQLite's write-ahead log holds it until its next checkpoint, which
        may be days away. PostgreSQL sees to that itself. Readers under way put it off. Raises ``DatabaseError``."""
        self._refuse_early(self._engines.writer)
        with self._watched(self._engines.writer):
            async with asyncio.timeout(self._seconds), self._turn(self._engines.writer):
                await checkpoint(self._engines.writer)
        self._recovered(self._engines.writer)

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        self._refuse_early(engine)
        with self._watched(engine):
            async with asyncio.timeout(self._seconds), self._turn(engine), engine.begin() as connection:
                yield connection
        self._recovered(engine)

    def _turn(self, engine: AsyncEngine) -> AbstractAsyncContextManager[object]:
        is_shared = engine is self._engines.writer and self._thread_writer is not None
        return self._writing if is_shared else nullcontext()

    def _refuse_early(self, engine: AsyncEngine) -> None:
        """While connections fail, one caller at a time tries, a second after the last: a request that has to know
        something must not wait for a time-out to learn that nobody can tell."""
        if self._migrated and not (engine is self._failed_in and self._failure and self._failure.trouble in CONNECTION):
            return
        if self._failure is None:
            raise DatabaseError(Trouble.LOST, "it has not been opened yet", self.where)
        if not self._migrated or self._clock() < self._next_try:
            self._note(self._failure)
            raise DatabaseError(self._failure.trouble, "as of a moment ago", self.where)
        self._next_try = self._clock() + self._seconds

    @contextmanager
    def _watched(self, engine: AsyncEngine) -> Iterator[None]:
        """What says something of the database's state is raised as ``DatabaseError``, and logged if it is news."""
        try:
            yield
        except failures() as error:  # TimeoutError is an OSError
            found = trouble_of(error)
            if found is None:
                raise
            failure = DatabaseError(*found, self.where)
            self._note(failure)
            self._failure, self._failed_in = failure, engine
            self._next_try = self._clock() + RETRY_SECONDS
            raise failure from error

    def _note(self, failure: DatabaseError) -> None:
        """Nobody who is told of ``failure`` writes it to the log: it is there once, and every minute while it lasts."""
        self._failed_times += 1
        now = self._clock()
        if self._failure is None or failure.trouble is not self._failure.trouble:
            log.error("%s; the gateway serves on without it", failure)
        elif now >= self._said_at + REMIND_SECONDS:
            log.error("%s; it was needed %d times since it failed", failure, self._failed_times)
        else:
            return
        self._said_at = now

    def _recovered(self, engine: AsyncEngine) -> None:
        """Of SQLite's engines the one that failed must work again: a file on a full disk can be read all the while."""
        if self._failure is not None and engine is self._failed_in:
            times = "once" if self._failed_times == 1 else f"{self._failed_times} times"
            log.warning("%s works again; it was needed %s meanwhile", self.where, times)
            self._failure = self._failed_in = None
            self._failed_times = 0


def _read(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    with engine.begin() as connection:
        return work(connection)
