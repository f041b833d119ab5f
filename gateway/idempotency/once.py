"""All runs of this process, by key: requests that come while one is under way join it.

A run is ended when the last client has been gone for half a minute, so that an SDK that lost its connection, and asks
again, finds the work where it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import NoReturn

from gateway.database.answers import Answers
from gateway.database.database import Database
from gateway.idempotency.clock import Clock, SystemClock
from gateway.idempotency.keeper import Keeper
from gateway.idempotency.run import Ended, Origin, OtherRequest, Run
from gateway.settings import Settings
from gateway.storage.objects import Objects

LINGER_SECONDS = 30.0
"""From the leaving of the last client to the end of its work."""

SWEEP_SECONDS = 60.0

log = logging.getLogger(__name__)

Work = Callable[[Run], Awaitable[None]]
"""Sends an answer to the run, or raises."""


def unrecorded(_: Run) -> None:
    """For whom it is all the same how a run ended."""


def open_once(settings: Settings, database: Database, objects: Objects, owner: str, clock: Clock | None = None) -> Once:
    """``owner``: this process, among all gateways on ``database``."""
    keeper = Keeper(
        Answers(database, owner),
        objects,
        max_age_seconds=settings.idempotency_max_age_seconds,
        max_bytes=settings.idempotency_max_bytes,
        clock=clock,
    )
    return Once(keeper, clock)


class Once:
    def __init__(self, keeper: Keeper | None = None, clock: Clock | None = None) -> None:
        """Without ``keeper`` only requests that come at the same time are one, and only in this process."""
        self._keeper = keeper
        self._clock = clock or SystemClock()
        self._runs: dict[bytes, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, key: bytes, digest: bytes) -> Run | None:
        """The run under way for ``key``. Raises ``OtherRequest``."""
        run = self._runs.get(key)
        if run is not None and run.digest != digest:
            raise OtherRequest
        return run

    def start(
        self,
        key: bytes,
        digest: bytes,
        request_id: str,
        work: Work,
        held: AsyncExitStack,
        record: Callable[[Run], None] = unrecorded,
    ) -> Run:
        """A run for ``key``, of which there must be none. ``work`` is called unless the answer is known already. In the
        end, whoever waits then, ``held`` is closed and ``record`` called."""
        run = self._runs[key] = Run(digest, request_id)
        # Not in a task group: a run belongs to whoever waits, and ends with this object at the latest.
        task = asyncio.create_task(self._lead(key, run, work, held, record), name="idempotent request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def close(self) -> None:
        """End every run, and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self) -> NoReturn:
        """Delete what has expired, for ever."""
        while True:
            if self._keeper is not None:
                await self._keeper.sweep()
            await self._clock.sleep(SWEEP_SECONDS)

    async def _lead(
        self, key: bytes, run: Run, work: Work, held: AsyncExitStack, record: Callable[[Run], None]
    ) -> None:
        """From the claim to the end; whatever happens, nobody waits for ever."""
        answering = asyncio.create_task(self._answer(key, run, work), name="idempotent answer")
        leaving = asyncio.create_task(self._until_abandoned(key, run), name="watch clients")
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                log.info("%s: cancelled: no client with its Idempotency-Key has come back", run.request_id)
        finally:
            answering.cancel()
            leaving.cancel()
            # The key is free once the work has ended, and not before: else it might be done twice at one time.
            ended, left = await asyncio.gather(answering, leaving, return_exceptions=True)
            await held.aclose()
            del self._runs[key]
            if isinstance(ended, asyncio.CancelledError):
                run.fail(Ended())
            elif isinstance(ended, BaseException):
                run.fail(ended)
            else:
                run.finish()
            record(run)
            if isinstance(left, Exception):
                log.error("%s: a defect: nobody watches its clients", run.request_id, exc_info=left)
            if isinstance(ended, Exception) and not run.audience:
                log.warning("%s: failed, and nobody waits: %s: %s", run.request_id, type(ended).__name__, ended)

    async def _answer(self, key: bytes, run: Run, work: Work) -> None:
        if self._keeper is None:
            run.origin = Origin.UNAVAILABLE
            await work(run)
            return
        async with self._keeper.claimed(key, run) as has_to_work:
            if has_to_work:
                await work(run)

    async def _until_abandoned(self, key: bytes, run: Run) -> None:
        """Clients of other gateways count as well."""
        while True:
            await run.nobody_left.wait()
            rest = LINGER_SECONDS
            while rest > 0 and not await self._somebody_comes(run, rest):
                rest = 0.0
                if self._keeper is not None:
                    rest = await self._keeper.waited_for_elsewhere(key) + LINGER_SECONDS - self._clock.now()
            if run.audience == 0:
                return

    async def _somebody_comes(self, run: Run, seconds: float) -> bool:
        coming = asyncio.create_task(run.somebody_came.wait(), name="watch for a client")
        lingering = asyncio.create_task(self._clock.sleep(seconds), name="linger")
        try:
            await asyncio.wait((coming, lingering), return_when=asyncio.FIRST_COMPLETED)
        finally:
            coming.cancel()
            lingering.cancel()
        return run.audience > 0
