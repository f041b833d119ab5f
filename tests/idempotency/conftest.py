from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.database.answers import Answers
from gateway.database.database import Database
from gateway.idempotency.keeper import Keeper
from gateway.idempotency.once import Once
from gateway.idempotency.run import Head, Run
from gateway.settings import Settings
from gateway.storage.objects import Objects, in_memory
from tests.databases import prepared

JSON = [(b"content-type", b"application/json"), (b"x-seed", b"7"), (b"x-ratelimit-remaining-requests", b"3")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class ManualClock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.time = 1_764_000_000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        entry = (self.time + seconds, woken)
        self._sleepers.append(entry)
        self._changed.set()
        try:
            await woken
        finally:
            self._sleepers.remove(entry)
            self._changed.set()

    def sleeping(self) -> list[float]:
        """Seconds that each sleeper has left."""
        return sorted(when - self.time for when, _ in self._sleepers)

    async def until_sleeping(self, *seconds: float) -> None:
        """Until these sleepers are there, among others."""
        async with asyncio.timeout(60):
            while not all(each in self.sleeping() for each in seconds):
                self._changed.clear()
                await self._changed.wait()

    def advance(self, seconds: float) -> None:
        self.time += seconds
        for when, woken in list(self._sleepers):
            if when <= self.time and not woken.done():
                woken.set_result(None)


async def settle() -> None:
    """Let whatever can go on without time or threads go on."""
    for _ in range(50):
        await asyncio.sleep(0)


async def sent(run: Run, body: bytes = b'{"a":1}', headers=JSON, status: int = 200) -> None:
    """What an application does."""
    await run.send({"type": "http.response.start", "status": status, "headers": headers})
    for line in body.splitlines(keepends=True):
        await run.send({"type": "http.response.body", "body": line, "more_body": True})
    await run.send({"type": "http.response.body", "body": b""})


async def heard(run: Run) -> tuple[Head, bytes]:
    """What a client gets."""
    async with asyncio.timeout(60):
        with run.attended():
            words = [word async for word in run.listen()]
    assert isinstance(words[0], Head)
    return words[0], b"".join(words[1:])


class Waiting:
    """A client that waits, until it leaves."""

    def __init__(self, run: Run) -> None:
        self.task = asyncio.create_task(heard(run))

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def start(once: Once, work, key: bytes = b"k", digest: bytes = b"d") -> Run:
    return once.start(key, digest, "req_1", work, AsyncExitStack())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(Settings(state_dir=prepared(tmp_path)))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def objects() -> Objects:
    return in_memory()


Keepers = Callable[..., Keeper]


@pytest.fixture
def keeper_of(database: Database, objects: Objects, clock: ManualClock) -> Keepers:
    """Keepers of several gateways on one database and one store."""

    def make(owner: str, *, store: Objects | None = None, max_bytes: int = 1 << 30) -> Keeper:
        return Keeper(
            Answers(database, owner), store or objects, max_age_seconds=86_400, max_bytes=max_bytes, clock=clock
        )

    return make
