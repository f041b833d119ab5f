"""The control socket: a DEALER that is opened anew whenever the gateway was lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from stage_server.runtime.events import Connected, Denied, Disconnected, Received, Reconnect, Unreached
from stage_server.runtime.line import Line
from wire.control_codec import MAX_TO_STAGE_BYTES, decode_to_stage, encode
from wire.errors import WireError
from wire.security import CurveKeys
from wire.to_gateway import ToGateway
from wire.to_stage import Welcome

QUEUE = 1000
"""Messages that wait for the socket; more mean that the gateway does not read, and the connection is given up."""

_DENIED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | _DENIED

RETRY_SECONDS = 0.2
"""Until a socket is tried again that could not be made."""

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 1.0
"""For the last messages to a gateway."""

LinkEvent = Connected | Disconnected | Unreached | Denied | Received


@dataclass(frozen=True, slots=True)
class Curve:
    """Encryption of the control connection."""

    own: CurveKeys
    gateway_key: str
    """The gateway's public key (Z85)."""


class BadEndpoint(Exception):
    """Not an address that a socket could connect to; the text is for the operator."""


class ControlSocket:
    """``on_event`` is called on the event loop, in the order of what happens."""

    def __init__(
        self, endpoints: Iterable[str], identity: str, curve: Curve | None, on_event: Callable[[LinkEvent], None]
    ) -> None:
        """``endpoints``: those that it may be told to open. Raises ``BadEndpoint``."""
        self._identity = identity.encode()
        self._curve = curve
        self._on_event = on_event
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._line = Line()
        """The connection that counts …"""
        self._serving: asyncio.Task[None] | None = None
        self._lines: dict[asyncio.Task[None], Line] = {}
        """… and all whose socket is open, or about to be."""
        self._complained = False
        """The operator knows why nobody is reached, until somebody is."""
        for endpoint in endpoints:
            self._probe(endpoint)

    def reopen(self, tasks: asyncio.TaskGroup, effect: Reconnect) -> None:
        if effect.farewell and self._serving is not None:
            tasks.create_task(_part(self._serving, self._line), name="farewell")
        elif self._serving is not None:
            self._serving.cancel()
        line = self._line = Line()
        self._serving = tasks.create_task(self._serve(line, effect), name="control socket")
        self._lines[self._serving] = line
        self._serving.add_done_callback(self._lines.pop)

    def send(self, message: ToGateway) -> None:
        if len(self._line.outbox) < QUEUE:
            self._line.send(encode(message))
            return
        log.warning("%d control messages wait for the gateway; the connection is given up", QUEUE)
        asyncio.get_running_loop().call_soon(self._on_event, Disconnected())

    async def flush(self, seconds: float) -> None:
        """Wait until all that was sent has left, but no longer than ``seconds``."""
        if not await self._line.emptied(seconds):
            log.warning("the gateway did not take the last messages within %g s", seconds)

    async def close(self, linger_ms: int) -> None:
        """What was sent may take ``linger_ms`` to reach the gateway's machine."""
        self._line.linger_ms = linger_ms
        for task in tuple(self._lines):
            task.cancel()
        if self._lines:
            await asyncio.wait(tuple(self._lines))
        self._context.term()

    async def _serve(self, line: Line, effect: Reconnect) -> None:
        await asyncio.sleep(effect.delay)
        while (opened := self._opened()) is None:  # noqa: ASYNC110 # nobody tells when others close their files
            await asyncio.sleep(RETRY_SECONDS)
        dealer, monitor = opened
        try:
            dealer.connect(effect.endpoint)
        except zmq.ZMQError as error:  # its own were tried at the start: this one a gateway has named
            log.warning("%r is no address of a gateway: %s", effect.endpoint, zmq.strerror(error.errno or 0))

        def tell(event: LinkEvent) -> None:
            if line is self._line:  # otherwise the connection was given up, and its last messages with it
                self._on_event(event)

        def hear(frames: list[bytes]) -> None:
            for frame in frames:
                try:
                    message = decode_to_stage(frame)
                except WireError as error:
                    log.warning("a message of the gateway was dropped: %s", error)
                    continue
                if isinstance(message, Welcome):
                    line.joins = message.joins
                tell(Received(message))

        await line.carry(dealer, monitor, hear, lambda frames: self._watch(effect.endpoint, frames, tell))

    def _opened(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]] | None:
        """With its monitor; None where this process has no descriptors left for them."""
        dealer: zmq.Socket[bytes] | None = None
        try:
            dealer = self._open()
            return dealer, dealer.get_monitor_socket(_WATCHED)
        except zmq.ZMQError as error:
            log.warning("no socket can be made for the gateway: %s; trying again", zmq.strerror(error.errno or 0))
        if dealer is not None:
            dealer.close(linger=0)
        return None

    def _open(self) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, self._identity)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, 1)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_TO_STAGE_BYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        self._encrypt(dealer)
        return dealer

    def _probe(self, endpoint: str) -> None:
        """Find out now whether the address is one; nothing is sent."""
        with self._open() as dealer:
            try:
                dealer.connect(endpoint)
            except zmq.ZMQError as error:
                raise BadEndpoint(f"{endpoint!r} is no address of a gateway: {error.strerror}") from error

    def _encrypt(self, dealer: zmq.Socket[bytes]) -> None:
        if self._curve is not None:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, self._curve.gateway_key.encode())
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._curve.own.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, self._curve.own.secret.encode())

    def _watch(self, endpoint: str, frames: list[bytes], tell: Callable[[LinkEvent], None]) -> None:
        event = parse_monitor_message(frames)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._complained = False
            tell(Connected())
        elif event == zmq.EVENT_DISCONNECTED:
            tell(Disconnected())
        elif event == zmq.EVENT_CONNECT_RETRIED:
            tell(Unreached())
        elif event & _DENIED:
            tell(Denied())
            if self._complained:
                return
            self._complained = True
            log.warning(
                "%s answers and hangs up: no gateway is there, or one that does not accept %s",
                endpoint,
                "a server without CURVE keys" if self._curve is None else "the CURVE keys given here",
            )


async def _part(serving: asyncio.Task[None], line: Line) -> None:
    """End a connection once its last messages have left."""
    line.linger_ms = round(FAREWELL_SECONDS * 1000)
    await line.emptied(FAREWELL_SECONDS)
    serving.cancel()
