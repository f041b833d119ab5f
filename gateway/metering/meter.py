"""Gathers records of use, and sees to it that each is written: to the database, or to a file until it can be.

Lost is what comes when database, file and memory are all full; the log says how many that were. What waits in memory is
in a journal as well, for the case that the process is killed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import NoReturn, Protocol

from gateway.database.errors import DatabaseError
from gateway.database.usage import DAY_SECONDS, UsageRecord, UsageSelection, UsageSum, charges, month_of
from gateway.metering.journal import Journal
from gateway.metering.overflow import Overflow

WRITE_SECONDS = 1.0
"""Between two batches."""
BATCH = 500
MAX_WAITING = 20_000
"""Records in memory, some 10 MB; there are so many only while neither database nor file takes any."""
FORGET_SECONDS = 3600.0

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """``gateway.database.usage.Usage``. Methods raise ``DatabaseError``."""

    async def sums(self, selection: UsageSelection, limit: int) -> list[UsageSum]: ...

    async def write(self, records: Sequence[UsageRecord]) -> None: ...

    async def forget(self, before: float, limit: int = ...) -> int: ...


class Meter:
    """``run`` must run as long as it is used, and ``write`` come last."""

    def __init__(
        self,
        ledger: Ledger,
        overflow: Overflow,
        retention_days: float | None = None,
        clock: Callable[[], float] = time.time,
        journal: Journal | None = None,
    ) -> None:
        self.ledger = ledger
        self._journal = journal
        self._overflow = overflow
        self._retention_days = retention_days
        self._clock = clock
        self._waiting: deque[UsageRecord] = deque()
        self._unwritten: defaultdict[tuple[str, int], float] = defaultdict(float)
        self._lost = 0
        self._is_waiting = False
        self._forget_at = clock()
        self.writes = 0
        """Counted up when a write to the ledger begins, and when it ends."""
        self.on_written: Callable[[Mapping[tuple[str, int], float]], None] = lambda _: None
        """Told the device-seconds, by key and month, of records that have been written."""

    def record(self, record: UsageRecord) -> None:
        """Never waits."""
        if len(self._waiting) >= MAX_WAITING:
            self._lose(1)
            return
        if self._journal is not None:
            self._journal.note(record)
        self._waiting.append(record)
        self._unwritten[record.key, month_of(record.created)] += record.device_seconds

    def unwritten(self, key: str, month: int) -> float:
        """Device-seconds that the ledger does not know of yet."""
        return self._unwritten.get((key, month), 0.0)

    async def run(self) -> NoReturn:
        while True:
            await self.write()
            await self.forget_old()
            await asyncio.sleep(WRITE_SECONDS)

    async def write(self) -> None:
        """What is waiting, the file's part first."""
        try:
            await self._replay()
            while self._waiting:
                batch = list(islice(self._waiting, BATCH))
                await self._write(batch)
                for _ in batch:
                    self._waiting.popleft()
        except DatabaseError:  # it is in the log, once
            await self._put_into_file()
        if self._journal is not None:
            self._journal.shorten(self._waiting) if self._waiting else self._journal.clear()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    async def _replay(self) -> None:
        try:
            if not await asyncio.to_thread(self._overflow.exists):
                return
            count = 0
            for batch in self._overflow.batches(BATCH):
                await self._write(batch)
                count += len(batch)
            await asyncio.to_thread(self._overflow.clear)
        except OSError as error:
            log.warning("%s cannot be read: %s", self._overflow.path, error.strerror)
            return
        if count:  # a full disk leaves a file without records
            log.info("%d records of use have been written from %s to the database", count, self._overflow.path)
        if self._lost:
            log.error("%d records of use were lost meanwhile", self._lost)
        self._lost, self._is_waiting = 0, False

    async def _put_into_file(self) -> None:
        batch = list(self._waiting)
        if not batch:
            return
        where = f"in {self._overflow.path} until the database takes them"
        try:
            taken = await asyncio.to_thread(self._overflow.append, batch)
        except OSError as error:
            where = f"in memory: {self._overflow.path}: {error.strerror}"
        else:
            for _ in batch:
                self._waiting.popleft()
            self._lose(len(batch) - taken)
        if not self._is_waiting:
            log.warning("records of use wait %s", where)
        self._is_waiting = True

    async def _write(self, batch: Sequence[UsageRecord]) -> None:
        """Raises ``DatabaseError``."""
        self.writes += 1
        try:
            await self.ledger.write(batch)
        finally:
            self.writes += 1
        written = charges(batch)
        for account, seconds in written.items():
            left = self._unwritten.pop(account, 0.0) - seconds
            if left > 1e-6:  # sums of floats
                self._unwritten[account] = left
        self.on_written(written)

    def _lose(self, count: int) -> None:
        if count and not self._lost:
            log.error("records of use are being lost: neither the database nor %s takes them", self._overflow.path)
        self._lost += count

    async def forget_old(self) -> None:
        """Once an hour, whoever asks."""
        now = self._clock()
        if self._retention_days is None or now < self._forget_at:
            return
        self._forget_at = now + FORGET_SECONDS
        old = now - self._retention_days * DAY_SECONDS
        with suppress(DatabaseError):  # it is in the log, once; later, then
            while await self.ledger.forget(old):
                pass  # a short transaction each: others write in between
