"""Two connections made one: what comes from either goes to the other. Knows nothing of what that is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

BUFFER_BYTES = 256 << 10
"""In each direction; nothing more is read before the last of it was taken."""

_PATIENCE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
"""Routers forget a connection that is silent for minutes, and tell nobody. The last, in milliseconds: a receiver that
takes nothing for so long, or is gone, loses its connection."""


def prepare(connection: socket.socket) -> None:
    """For an event loop, and for long silences."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PATIENCE.items():
        if hasattr(socket, option):  # by the system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def splice(one: socket.socket, other: socket.socket, passed: Callable[[int], None] = lambda _: None) -> None:
    """Until either is closed by its other side, or fails: ``OSError``. ``passed`` is told of bytes that have."""
    await until_one_ends(_copy(one, other, passed), _copy(other, one, passed))


async def until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run them at once; when the first is done or fails, so are the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _copy(source: socket.socket, sink: socket.socket, passed: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while nbytes := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(sink, buffer[:nbytes])
        passed(nbytes)
        await asyncio.sleep(0)  # or with always something to copy, others would never have a turn
