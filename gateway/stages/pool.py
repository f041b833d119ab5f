"""The control socket and its stage servers: moves messages, keeps time for ``liveness``, decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import msgspec

from gateway.stages.liveness import Effect, Heard, Joined, Lost, Report, Roster, Send, TellCell, Warn
from gateway.stages.sockets import Incoming, Router
from wire.control_codec import decode_to_gateway, encode
from wire.errors import WireError
from wire.to_gateway import Heartbeat
from wire.to_stage import AssignRoles, CellState, HeartbeatAck, Release, ToStage
from wire.types import ServerId

PROBE = HeartbeatAck(sequence=0)
"""Sent only to learn whether there still is a connection."""

HOLD_SECONDS = 0.02
"""For which the release of outputs waits for something else to be said to the same server: as a rule, its next job."""

MOST_HELD = 15
"""Messages that wait so for one server."""

WARN_EVERY = 1.0
"""Seconds between two warnings about what peers sent."""

MAX_NAME = 100
"""Characters of a peer's identity that go into the log."""

log = logging.getLogger(__name__)


class StagePool:
    """``on_report`` is called on the event loop, in the order of what happens."""

    def __init__(
        self,
        router: Router,
        roster: Roster,
        on_report: Callable[[Report], None],
        cell: Callable[[], CellState] | None = None,
    ) -> None:
        """``cell``: what other gateways hear of this one; they are told nothing without it."""
        self.malformed = 0
        """Messages that could not be read."""
        self._router = router
        self._roster = roster
        self._on_report = on_report
        self._cell = cell
        self._heard = asyncio.Event()
        self._held: dict[ServerId, list[bytes]] = {}
        self._flushing: asyncio.TimerHandle | None = None
        self._warned_at = -WARN_EVERY
        self._withheld = 0

    @property
    def endpoint(self) -> str:
        return self._router.endpoint

    def moves(self, server: ServerId) -> bool:
        """Whether it is here and goes to another gateway when told."""
        return self._roster.moves(server)

    def vitals(self) -> Mapping[ServerId, Heartbeat]:
        """Every server's last heartbeat."""
        return self._roster.vitals()

    async def run(self) -> None:
        """Serve for ever. The sockets may be closed once this has ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive(), name="control receiver")
                tasks.create_task(self._keep_time(), name="control timer")
                tasks.create_task(self._watch_connections(), name="control monitor")
        finally:
            if self._flushing is not None:
                self._flushing.cancel()
                self._flush()

    def send(self, server: ServerId, message: ToStage) -> None:
        """A server that cannot be reached is reported as ``Lost``; to one that is not here, nothing is sent."""
        if isinstance(message, AssignRoles):
            message = msgspec.structs.replace(message, forms=self._roster.forms(server))
        frame = encode(message)
        if isinstance(message, Release) and self._roster.joins(server):
            self._hold(server, frame)
        else:
            self._deliver(server, frame)

    def _hold(self, server: ServerId, frame: bytes) -> None:
        held = self._held.setdefault(server, [])
        held.append(frame)
        if len(held) >= MOST_HELD:
            self._deliver(server)
        elif self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        for server in tuple(self._held):
            self._deliver(server)

    def _deliver(self, server: ServerId, *frames: bytes) -> None:
        if not self._router.send(server.encode(), [*self._held.pop(server, ()), *frames]):
            self._do(self._roster.lose(server, "it cannot be reached, or does not read its messages"))

    async def _receive(self) -> NoReturn:
        while True:
            for incoming in await self._router.receive_all():
                self._hear(incoming)
            self._heard.set()

    async def _keep_time(self) -> NoReturn:
        clock = asyncio.get_running_loop().time
        while True:
            due = self._roster.next_wakeup()
            if due is None:
                self._heard.clear()
                await self._heard.wait()
                continue
            await asyncio.sleep(due - clock())  # whatever is heard meanwhile can only put it off
            self._do(self._roster.tick(clock()))

    async def _watch_connections(self) -> NoReturn:
        """The fast path to a loss: ZeroMQ tells that a connection ended but not whose, so all are tried."""
        while True:
            await self._router.disconnection()
            for server in self._roster.servers:
                if not self._router.send(server.encode(), [encode(PROBE)]):
                    self._do(self._roster.lose(server, "its connection ended"))

    def _hear(self, incoming: Incoming) -> None:
        now = asyncio.get_running_loop().time()
        try:
            server = ServerId(incoming.peer.decode())
        except UnicodeDecodeError:
            self._drop(repr(incoming.peer[:20]), "its identity is not text")
            return
        for frame in incoming.frames or (b"",):
            try:
                message = decode_to_gateway(frame)
            except WireError as error:
                self._drop(server, str(error))
                self._do(self._roster.stranger(server, now))
            else:
                self._do(self._roster.hear(server, message, now, incoming.user))

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
                case Heard():  # nearly always
                    self._on_report(effect)
                case Send(server, message):
                    self.send(server, message)
                case Joined(server):
                    # Unless the welcome, which goes first, met a connection that had ended meanwhile: then it is lost,
                    # that was said, and nobody would ever say it again of a server that joins after it.
                    if self._roster.is_here(server):
                        self._on_report(effect)
                case Lost(server):
                    self._held.pop(server, None)
                    self._on_report(effect)
                case TellCell(peer):
                    if self._cell is not None:
                        self._router.send(peer.encode(), [encode(self._cell())])
                case Warn(text):
                    self._warn(text)
