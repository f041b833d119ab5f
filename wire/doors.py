"""Loopback addresses that lead through relays: ZeroMQ's sockets connect to them as to any other.

ZeroMQ can be sent through a SOCKS proxy, but libzmq 4.3.5 aborts the process when such a socket is closed after its
proxy was not reached.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from wire.dial import DIAL_SECONDS, through_relay
from wire.relay import Fetch, Way, way
from wire.splice import prepare, splice
from wire.version import PROTOCOL

MAX_DOORS = 1024
"""Those used longest ago are closed; connections through them stay."""
DIALLERS = 8
"""Relays that are asked for a connection at once; further ones wait."""

ACCEPT_AGAIN_SECONDS = 0.1
"""After the system had no room for a connection."""

log = logging.getLogger(__name__)


class Doors:
    """Its doors are opened from any thread, and served on ``loop``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_shut: Callable[[str], None] = lambda _: None) -> None:
        """``on_shut``: called on the loop with a door that leads nowhere just now, or not any more."""
        self._loop = loop
        self._on_shut = on_shut
        self._lock = threading.Lock()
        self._doors: OrderedDict[str, socket.socket] = OrderedDict()
        self._dialling = ThreadPoolExecutor(DIALLERS, "relay-dialler")
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: dict[socket.socket, asyncio.Task[None]] = {}

    def to(self, endpoint: str) -> str:
        """Where to connect to get to ``endpoint``; that itself where it is not behind a relay."""
        through = way(endpoint)
        if through is None:
            return endpoint
        with self._lock:
            door = self._doors.get(endpoint)
            if door is None:
                door = self._doors[endpoint] = socket.create_server(("127.0.0.1", 0))
                door.setblocking(False)
                self._loop.call_soon_threadsafe(self._open, door, through)
            self._doors.move_to_end(endpoint)
            if len(self._doors) > MAX_DOORS:
                _, oldest = self._doors.popitem(last=False)
                self._loop.call_soon_threadsafe(self._shut, oldest)
        return _name(door)

    async def close(self) -> None:
        """On the loop."""
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._dialling.shutdown(wait=False, cancel_futures=True)

    # On the loop.

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _open(self, door: socket.socket, through: Way) -> None:
        self._serving[door] = self._start(self._serve(door, through))

    def _shut(self, door: socket.socket) -> None:
        self._on_shut(_name(door))
        self._serving.pop(door).cancel()

    async def _serve(self, door: socket.socket, through: Way) -> None:
        with door:
            while True:
                try:
                    connection, _ = await self._loop.sock_accept(door)
                except OSError as error:
                    log.warning("a connection through the relay %s cannot be accepted: %s", through.relay, error)
                    await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                else:
                    self._start(self._lead(connection, _name(door), through))

    async def _lead(self, connection: socket.socket, door: str, through: Way) -> None:
        wanted = Fetch(protocol=PROTOCOL, name=through.name)
        with connection:
            try:
                prepare(connection)
                dialling = self._loop.run_in_executor(
                    self._dialling, through_relay, through.relay, wanted, DIAL_SECONDS
                )
                with await dialling as other:
                    prepare(other)
                    await splice(connection, other)
            except OSError as error:
                log.debug("no more of a connection through the relay %s: %s", through.relay, error)
                self._on_shut(door)


def _name(door: socket.socket) -> str:
    return f"tcp://127.0.0.1:{door.getsockname()[1]}"
