from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from stage_server.data.consumer import Consumer
from stage_server.data.relayed import RelayedHolder
from stage_server.relay.relay import Relay

PATIENCE = 20.0


class Running:
    """A relay on an event loop, in a thread of its own."""

    def __init__(self, port: int = 0, **options) -> None:
        listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
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
def behind() -> Iterator[Callable[..., RelayedHolder]]:
    """Makes holders that are reached through a relay; closes them."""
    made: list[RelayedHolder] = []

    def make(relay: Running, lookup, **options) -> RelayedHolder:
        made.append(RelayedHolder(relay.endpoint, lookup, retry_seconds=0.05, **options))
        return made[-1]

    yield make
    for holder in made:
        holder.close()


@pytest.fixture
def consuming() -> Iterator[Callable[..., Consumer]]:
    """Makes consumers; closes them."""
    made: list[Consumer] = []

    def make(**options) -> Consumer:
        made.append(Consumer(**options))
        return made[-1]

    yield make
    for consumer in made:
        consumer.close()
