"""Requests over connections that stay open, with as little work as a client can have; and one that only looks in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from benchmarks.bare_handler import PATH
from benchmarks.gateway_processes import BODY, KEY, Subject

HEALTH = "/healthz"


async def load(subject: Subject, requests: int, at_once: int) -> list[float]:
    """So many requests over as many connections as are under way at once; seconds that each took."""
    each = [requests // at_once + (index < requests % at_once) for index in range(at_once)]
    taken = await asyncio.gather(*(_client(subject.port, "POST", PATH, BODY, count) for count in each))
    return [seconds for some in taken for seconds in some]


async def load_and_look_in(subject: Subject, requests: int, at_once: int) -> list[float]:
    """The same; seconds that a request took meanwhile for which there is nothing to do, one after the other."""
    looks: list[float] = []

    async def look_in() -> None:
        while True:
            looks.extend(await _client(subject.port, "GET", HEALTH, b"", 10))

    looking = asyncio.create_task(look_in())
    await load(subject, requests, at_once)
    looking.cancel()
    await asyncio.wait([looking])
    return looks


async def ask(port: int, body: bytes) -> float:
    """One request for pictures over a connection of its own; seconds that it took. Raises ``RuntimeError``."""
    (seconds,) = await _client(port, "POST", PATH, body, 1)
    return seconds


@asynccontextmanager
async def clients(
    client: Callable[[], Awaitable[None]], number: int
) -> AsyncIterator[Callable[[float], Awaitable[None]]]:
    """So many endless clients until the block ends; what it gets lets them go on for so many seconds.

    They end by an error alone, which it raises.
    """
    asking = [asyncio.ensure_future(client()) for _ in range(number)]

    async def go_on(seconds: float) -> None:
        done, _ = await asyncio.wait(asking, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()

    try:
        yield go_on
    finally:
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that a share ``q`` of ``values`` does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def _client(port: int, method: str, path: str, body: bytes, requests: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    taken = []
    for _ in range(requests):
        began = time.perf_counter()
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        answer = await reader.readexactly(length)
        taken.append(time.perf_counter() - began)
        if " 200 " not in lines[0]:
            raise RuntimeError(f"{lines[0]}: {answer[:500]!r}")
    writer.close()
    await writer.wait_closed()
    return taken
