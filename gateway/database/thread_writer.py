"""Transactions on SQLite that are one function each, in a thread: what waits while one is under way goes as one.

Every commit waits for the disk, and every way to a thread takes as long as a statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy.engine import Connection, Engine

from gateway.database.errors import trouble_of

MOST_TOGETHER = 64
"""Transactions that are committed as one."""

Result = TypeVar("Result")
Work = Callable[[Connection], Any]


class ThreadWriter:
    def __init__(self, engine: Engine, turn: asyncio.Lock) -> None:
        """``turn`` is held while it writes: whoever else writes to the file holds it too."""
        self._engine = engine
        self._turn = turn
        self._thread = ThreadPoolExecutor(1, "database")
        self._waiting: list[tuple[Work, asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        """What ``work`` returns, once it is committed. Raises what it, or the database, raises. Given up by whoever
        waits, it is done all the same."""
        outcome: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, outcome))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="database writer")
        return await outcome

    def close(self) -> None:
        """Waits for the transaction that is under way."""
        self._thread.shutdown()
        self._engine.dispose()

    async def _write(self) -> None:
        try:
            while self._waiting:
                async with self._turn:
                    some, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
                    works = [work for work, _ in some]
                    told = await asyncio.get_running_loop().run_in_executor(self._thread, self._together, works)
                for (_, outcome), (result, error) in zip(some, told, strict=True):
                    if outcome.done():
                        continue  # nobody waits any more
                    if error is None:
                        outcome.set_result(result)
                    else:
                        outcome.set_exception(error)
        finally:
            self._writing = None

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _together(self, works: Sequence[Work]) -> list[tuple[Any, Exception | None]]:
        try:
            with self._engine.begin() as connection:
                return [(work(connection), None) for work in works]
        except Exception as error:  # raised where it is waited for
            if len(works) == 1 or trouble_of(error) is not None:
                return [(None, error)] * len(works)
        # One of them could not be done, so nothing was, and the others are innocent.
        return [each for work in works for each in self._together([work])]
