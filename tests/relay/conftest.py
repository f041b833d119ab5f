from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from stage_server.data.holder import Holder
from stage_server.data.loop_thread import LoopThread
from stage_server.data.paths import PathConsumer, Pathfinder
from stage_server.data.relayed import Relayed
from stage_server.relay.relay import Relay
from tests.data.conftest import holding, raw_socket  # noqa: F401 # fixtures
from wire.doors import Doors
from wire.to_stage import InputRef
from wire.types import Handle, ServerId

PATIENCE = 60.0
NOWHERE = "tcp://127.0.0.1:1"
"""Refuses connections, as an address behind NAT does at best."""


class Running:
    """A relay on an event loop, in a thread of its own."""

    def __init__(self, port: int = 0, **options) -> None:
        listener = socket.create_server(("127.0.0.1", port))
        self.port = listener.getsockname()[1]
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self._options = options
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(listener),))
        self._thread.start()
        assert self._started.wait(PATIENCE)

    async def _main(self, listener: socket.socket) -> None:
        self.relay = Relay(listener, **self._options)
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._drain = 0.0
        running = asyncio.create_task(self.relay.run())
        self._started.set()
        await self._stopped.wait()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await self.relay.drain(self._drain)

    def stop(self, drain: float = 0.0) -> None:
        """With ``drain`` 0, as if it were killed: all connections are closed at once."""
        if self._thread.is_alive():
            self._drain = drain
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(PATIENCE)


class Behind:
    """A holder that nobody can connect to but through relays."""

    def __init__(self, relays, loop: LoopThread, holder: Holder, name: str, public_key: str, **options) -> None:
        self.holder = holder
        self.server = ServerId(name)
        self.public_key = public_key
        self.relayed = [Relayed(each.endpoint, holder.endpoint, loop, retry_seconds=0.05, **options) for each in relays]
        self.endpoint = self.relayed[0].endpoint

    def ref(self, handle: Handle, direct: str = NOWHERE) -> InputRef:
        relays = tuple(each.endpoint for each in self.relayed)
        return InputRef(handle=handle, endpoint=direct, relays=relays, server=self.server, public_key=self.public_key)

    def close(self) -> None:
        for each in self.relayed:
            each.close()


@pytest.fixture
def relaying() -> Iterator[Callable[..., Running]]:
    """Makes relays; ends them."""
    made: list[Running] = []

    def make(port: int = 0, **options) -> Running:
        made.append(Running(port, **options))
        return made[-1]

    yield make
    for running in made:
        running.stop()


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    """On which streams and doors are served."""
    made = LoopThread("relayed")
    yield made
    made.close()


@pytest.fixture
def behind(loop: LoopThread) -> Iterator[Callable[..., Behind]]:
    """Makes holders behind relays; closes them."""
    made: list[Behind] = []
    holders: list[Holder] = []

    def make(relays, lookup, keys=None, name="good/1", **options) -> Behind:
        holders.append(Holder("tcp://127.0.0.1:*", lookup, keys=keys, identity=name))
        relays = relays if isinstance(relays, list) else [relays]
        made.append(Behind(relays, loop, holders[-1], name, keys.public if keys else "", **options))
        return made[-1]

    yield make
    for behind in made:
        behind.close()
    for holder in holders:
        holder.close()


@pytest.fixture
def consuming(loop: LoopThread) -> Iterator[Callable[..., PathConsumer]]:
    """Makes consumers; closes them."""
    made: list[PathConsumer] = []

    def make(keys=None, **options) -> PathConsumer:
        made.append(PathConsumer(Pathfinder(keys, Doors(loop.loop), PATIENCE), keys=keys, **options))
        return made[-1]

    yield make
    for consumer in made:
        consumer.close()
