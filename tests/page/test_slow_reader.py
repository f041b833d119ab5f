"""Clients of the stream behind the real HTTP server: one that does not read, what is kept for it and how it catches up,
and several that do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from gateway.api.app import create_app
from gateway.api.http_protocol import HttpProtocol, chunk
from gateway.settings import Settings
from tests.admin.conftest import KEY, NoService
from tests.page.test_feed import Copy, WatchedDesk, filled, tables_of
from wire.types import REQUIRED

MOST = 256 << 10
"""Bytes that the gateway may keep for a reader."""


@asynccontextmanager
async def serving(desk: WatchedDesk) -> AsyncIterator[tuple[uvicorn.Server, socket.socket]]:
    """The server, and where it listens, with a small buffer: the kernel would take megabytes."""
    app = create_app(NoService(), Settings(admin_key=KEY), operator=desk.operator, feed=desk.feed)
    server = uvicorn.Server(uvicorn.Config(app, http=HttpProtocol, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield server, listener
        server.should_exit = True
        await task


ASKED = f"GET /admin/pipeline HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()


async def test_a_client_that_does_not_read_costs_little_and_is_told_all_when_it_does() -> None:
    desk = WatchedDesk()
    for number in range(100):
        desk.join(f"server-{number}", *REQUIRED)
    async with serving(desk) as (server, listener):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, listener.getsockname())
        await loop.sock_sendall(client, ASKED)
        async with asyncio.timeout(120):
            while not desk.feed._readers:  # noqa: ASYNC110 # the server says nothing to those who do not read
                await asyncio.sleep(0)
            (reader,) = desk.feed._readers
            most, lagged = 0, 0
            number = 0
            while lagged < 3:  # until it has been given up on several times
                desk.ask(f"req_{number}", deadline=0.0)
                number += 1
                desk.feed.look()
                await asyncio.sleep(0)
                (connection,) = server.server_state.connections
                most = max(most, reader.nbytes + connection.transport.get_write_buffer_size())
                lagged += reader.lags
            assert most <= MOST

            copy, raw = Copy(), b""
            while not (copy.complete and filled(copy.tables) == filled(tables_of(desk.feed))):
                raw += await loop.sock_recv(client, 1 << 16)
                words, raw = unchunked(raw.partition(b"\r\n\r\n")[2] if raw.startswith(b"HTTP/") else raw)
                copy.take(words)
            assert copy.resets >= 1
        client.close()


async def test_clients_that_read_are_told_the_same_bytes_framed_once() -> None:
    desk = WatchedDesk()
    desk.join("a", *REQUIRED)
    async with serving(desk) as (_, listener), asyncio.timeout(120):
        clients = [await asyncio.open_connection(*listener.getsockname()) for _ in range(3)]
        copies = []
        for reader, writer in clients:
            writer.write(ASKED)
            await reader.readuntil(b"\r\n\r\n")
            copies.append(Copy())
            while not copies[-1].complete:
                copies[-1].take(await next_chunk(reader))
        chunk.cache_clear()
        desk.ask("req_1")
        desk.feed.look()
        told = [await next_chunk(reader) for reader, _ in clients]
        assert len(set(told)) == 1
        assert (chunk.cache_info().misses, chunk.cache_info().hits) == (1, 2)
        for copy, words in zip(copies, told, strict=True):
            copy.take(words)
            assert filled(copy.tables) == filled(tables_of(desk.feed))
        desk.feed.close()  # and the body ends as it should
        for reader, writer in clients:
            assert await next_chunk(reader) == b""
            writer.close()


async def next_chunk(reader: asyncio.StreamReader) -> bytes:
    size = int(await reader.readline(), 16)
    return (await reader.readexactly(size + 2))[:-2]


def unchunked(raw: bytes) -> tuple[bytes, bytes]:
    """What whole chunks hold, and what is left. Every chunk holds whole events."""
    words = b""
    while True:
        head, end, rest = raw.partition(b"\r\n")
        if not end or len(rest) < (size := int(head, 16)) + 2:
            return words, raw
        words += rest[:size]
        raw = rest[size + 2 :]
