"""One connection to a gateway on the event loop: what waits for it goes together, what waits on it is read at once.

No task or future for each message, as pyzmq's own sockets for asyncio have them: they cost more than the messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import zmq

from stage_server.data.multipart import receive, send

MOST_JOINED = 16
"""Messages that go as the frames of one, to a gateway that reads them so."""

IN_A_ROW = 32
"""Messages that are taken before others have their turn on the event loop."""

_READ, _WRITE, _EVENTS = int(zmq.POLLIN), int(zmq.POLLOUT), int(zmq.EVENTS)
"""As plain numbers, see ``multipart``."""

Hear = Callable[[list[bytes]], None]


class Line:
    """``send`` at any time; it goes once ``carry`` has a socket for it, and that a gateway."""

    def __init__(self) -> None:
        self.outbox: deque[bytes] = deque()
        self.linger_ms = 0
        """That what was sent may take, once the socket is closed, to reach the gateway's machine."""
        self.joins = False
        """The gateway, which has welcomed this connection, reads joined messages."""
        self._emptied: asyncio.Future[None] | None = None
        self._dealer: zmq.Socket[bytes] | None = None
        self._is_due = False
        """What waits is sent in the loop's next turn."""

    def send(self, frame: bytes) -> None:
        self.outbox.append(frame)
        if not self._is_due and self._dealer is not None:  # soon, not now: what else this turn has to say goes with it
            self._is_due = True
            self._loop.call_soon(self._turn)

    async def emptied(self, seconds: float) -> bool:
        """Wait until nothing waits, but no longer than ``seconds``: False if something still does."""
        if self.outbox:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._emptied}, timeout=seconds)
        return not self.outbox

    async def carry(self, dealer: zmq.Socket[bytes], monitor: zmq.Socket[bytes], hear: Hear, watch: Hear) -> None:
        """Until cancelled: what comes goes to ``hear``, the monitor's events to ``watch``. Closes both sockets.

        Raises what they raise.
        """
        self._loop = asyncio.get_running_loop()
        self._dealer, self._monitor, self._hear, self._watch = dealer, monitor, hear, watch
        self._failed: asyncio.Future[None] = self._loop.create_future()
        descriptors = [int(socket.getsockopt(zmq.FD)) for socket in (dealer, monitor)]
        for descriptor in descriptors:
            self._loop.add_reader(descriptor, self._turn)
        self._turn()
        try:
            await self._failed
        finally:
            self._dealer = None
            for descriptor in descriptors:
                self._loop.remove_reader(descriptor)
            dealer.disable_monitor()
            monitor.close(linger=0)
            dealer.close(linger=self.linger_ms)

    def _turn(self) -> None:
        """Take and send whatever can be.

        A descriptor says once that something may have happened, and whatever touches its socket afterwards may take
        note of it on the way: so they are asked until there is nothing, or nobody would be woken.
        """
        self._is_due = False
        if self._dealer is None or self._failed.done():
            return
        try:
            # Messages first: what came before a loss still counts.
            if self._exchange(self._dealer) or self._look(self._monitor):
                self._loop.call_soon(self._turn)
        except Exception as error:  # raised by ``carry``, whose task has an owner
            self._failed.set_exception(error)

    def _exchange(self, dealer: zmq.Socket[bytes]) -> bool:
        """Whether there may be more."""
        for _ in range(IN_A_ROW):
            events = int(dealer.getsockopt(_EVENTS))
            if events & _READ:
                self._hear(_received(dealer))
            elif events & _WRITE and self.outbox:
                self._send_some(dealer)
            else:
                return False
        return True

    def _look(self, monitor: zmq.Socket[bytes]) -> bool:
        """Whether there may be more."""
        for _ in range(IN_A_ROW):
            if not int(monitor.getsockopt(_EVENTS)) & _READ:
                return False
            self._watch(_received(monitor))
        return True

    def _send_some(self, dealer: zmq.Socket[bytes]) -> None:
        outbox = self.outbox
        frames = [outbox.popleft() for _ in range(min(len(outbox), MOST_JOINED if self.joins else 1))]
        send(dealer, frames)
        if not outbox and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)


def _received(socket: zmq.Socket[bytes]) -> list[bytes]:
    return [frame.bytes for frame in receive(socket)]
