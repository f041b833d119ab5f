"""The control socket and its stage servers: moves messages, keeps time for ``liveness``, decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

from gateway.stages.liveness import Effect, Heard, Joined, Lost, Report, Roster, Send, Warn
from gateway.stages.sockets import Incoming, Router
from wire.control_codec import decode_to_gateway, encode
from wire.errors import WireError
from wire.to_gateway import Heartbeat
from wire.to_stage import HeartbeatAck, ToStage
from wire.types import ServerId

PROBE = HeartbeatAck(sequence=0)
"""Sent only to learn whether there still is a connection."""

WARN_EVERY = 1.0
"""Seconds between two warnings about what peers sent."""

MAX_NAME = 100
"""Characters of a peer's identity that go into the log."""

log = logging.getLogger(__name__)


class StagePool:
    """``on_report`` is called on the event loop, in the order of what happens."""

    def __init__(self, router: Router, roster: Roster, on_report: Callable[[Report], None]) -> None:
        self.malformed = 0
        """Messages that could not be read."""
        self._router = router
        self._roster = roster
        self._on_report = on_report
        self._rescheduled = asyncio.Event()
        self._warned_at = -WARN_EVERY
        self._withheld = 0

    @property
    def endpoint(self) -> str:
        return self._router.endpoint

    def vitals(self) -> Mapping[ServerId, Heartbeat]:
        """Every server's last heartbeat."""
        return self._roster.vitals()

    async def run(self) -> None:
        """Serve for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive(), name="control receiver")
            tasks.create_task(self._keep_time(), name="control timer")
            tasks.create_task(self._watch_connections(), name="control monitor")

    def send(self, server: ServerId, message: ToStage) -> None:
        """A server that cannot be reached is reported as ``Lost``; to one that is not here, nothing is sent."""
        if not self._router.send(server.encode(), [encode(message)]):
            self._do(self._roster.lose(server, "it cannot be reached, or does not read its messages"))

    async def _receive(self) -> NoReturn:
        while True:
            incoming = await self._router.receive()
            self._do(self._hear(incoming))
            self._rescheduled.set()

    async def _keep_time(self) -> NoReturn:
        clock = asyncio.get_running_loop().time
        while True:
            self._rescheduled.clear()
            try:
                async with asyncio.timeout_at(self._roster.next_wakeup()):
                    await self._rescheduled.wait()
            except TimeoutError:
                self._do(self._roster.tick(clock()))

    async def _watch_connections(self) -> NoReturn:
        """The fast path to a loss: ZeroMQ tells that a connection ended but not whose, so all are tried."""
        while True:
            await self._router.disconnection()
            for server in self._roster.servers:
                if not self._router.send(server.encode(), [encode(PROBE)]):
                    self._do(self._roster.lose(server, "its connection ended"))

    def _hear(self, incoming: Incoming) -> list[Effect]:
        now = asyncio.get_running_loop().time()
        try:
            server = ServerId(incoming.peer.decode())
        except UnicodeDecodeError:
            self._drop(repr(incoming.peer[:20]), "its identity is not text")
            return []
        try:
            message = decode_to_gateway(incoming.frames[-1] if incoming.frames else b"")
        except WireError as error:
            self._drop(server, str(error))
            return self._roster.stranger(server, now)
        return self._roster.hear(server, message, now, incoming.user)

    def _drop(self, server: str, why: str) -> None:
        self.malformed += 1
        self._warn(f"a message of {server[:MAX_NAME]!r} was dropped: {why!r}")

    def _warn(self, text: str) -> None:
        """At most one line per ``WARN_EVERY``: what peers do must not fill the log."""
        now = asyncio.get_running_loop().time()
        if now - self._warned_at < WARN_EVERY:
            self._withheld += 1
            return
        log.warning("%s%s", text, f" ({self._withheld} further warnings before it)" if self._withheld else "")
        self._warned_at, self._withheld = now, 0

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(server, message):
                    self.send(server, message)
                case Joined() | Heard() | Lost():
                    self._on_report(effect)
                case Warn(text):
                    self._warn(text)
