"""A client that does not read, behind the real HTTP server: what the gateway keeps for it, and how it catches up."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from gateway.api.app import create_app
from gateway.api.http_protocol import HttpProtocol
from gateway.settings import Settings
from tests.admin.conftest import KEY, NoService
from tests.page.test_feed import Copy, WatchedDesk, filled, tables_of
from wire.types import REQUIRED

MOST = 256 << 10
"""Bytes that the gateway may keep for a reader."""


async def test_a_client_that_does_not_read_costs_little_and_is_told_all_when_it_does() -> None:
    desk = WatchedDesk()
    for number in range(100):
        desk.join(f"server-{number}", *REQUIRED)
    app = create_app(NoService(), Settings(admin_key=KEY), operator=desk.operator, feed=desk.feed)
    server = uvicorn.Server(uvicorn.Config(app, http=HttpProtocol, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # or the kernel would take megabytes
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, listener.getsockname())
        await loop.sock_sendall(
            client, f"GET /admin/pipeline HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
        )
        async with asyncio.timeout(30):
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
        server.should_exit = True
        await serving


def unchunked(raw: bytes) -> tuple[bytes, bytes]:
    """What whole chunks hold, and what is left. Every chunk holds whole events."""
    words = b""
    while True:
        head, end, rest = raw.partition(b"\r\n")
        if not end or len(rest) < (size := int(head, 16)) + 2:
            return words, raw
        words += rest[:size]
        raw = rest[size + 2 :]
