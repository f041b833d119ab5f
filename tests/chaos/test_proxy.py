from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.chaos.proxy import Proxy

PATIENCE = 60.0


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that sends back what it is sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def proxy(echo: int) -> AsyncIterator[Proxy]:
    async with Proxy(0, echo) as proxy:
        yield proxy


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(proxy: Proxy) -> Connection:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def said(connection: Connection, data: bytes) -> bytes:
    reader, writer = connection
    writer.write(data)
    async with asyncio.timeout(PATIENCE):
        return await reader.readexactly(len(data))


async def is_over(connection: Connection) -> bool:
    async with asyncio.timeout(PATIENCE):
        try:
            return await connection[0].read(1) == b""
        except ConnectionResetError:
            return True


async def test_bytes_pass_as_they_are(proxy: Proxy) -> None:
    data = bytes(range(256)) * 4000
    assert await said(await connected(proxy), data) == data


async def test_a_cut_ends_every_connection_and_new_ones_are_made(proxy: Proxy) -> None:
    first, second = await connected(proxy), await connected(proxy)
    assert await said(first, b"a") + await said(second, b"b") == b"ab"
    assert proxy.cut() == 2
    assert await is_over(first)
    assert await is_over(second)
    assert await said(await connected(proxy), b"c") == b"c"


async def test_what_is_held_up_passes_later(proxy: Proxy) -> None:
    connection = await connected(proxy)
    assert await said(connection, b"before") == b"before"
    proxy.hold()
    answer = asyncio.create_task(said(connection, b"after"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not answer.done()
    proxy.let_go()
    assert await answer == b"after"


async def test_refused_connections_end_at_once_and_those_there_are_go_on(proxy: Proxy) -> None:
    connection = await connected(proxy)
    assert await said(connection, b"a") == b"a"
    proxy.is_refusing = True
    assert await is_over(await connected(proxy))
    assert await said(connection, b"b") == b"b"
    proxy.heal()
    assert await said(await connected(proxy), b"c") == b"c"


async def test_a_slow_link_takes_its_time(proxy: Proxy) -> None:
    proxy.delay = 0.05
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await said(await connected(proxy), b"a") == b"a"
    assert loop.time() - began >= 0.1  # either way once


async def test_where_nobody_listens_a_connection_ends(proxy: Proxy, unused_port: int) -> None:
    proxy.target = unused_port
    assert await is_over(await connected(proxy))


@pytest.fixture
def unused_port() -> int:
    from tests.servers import free_port

    return free_port()
