"""The control socket: a DEALER that is opened anew whenever the gateway was lost. The only asyncio socket here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from stage_server.runtime.events import Connected, Denied, Disconnected, Received, Reconnect, Unreached
from wire.control_codec import MAX_TO_STAGE_BYTES, decode_to_stage, encode
from wire.errors import WireError
from wire.security import CurveKeys
from wire.to_gateway import ToGateway
from wire.to_stage import Welcome

QUEUE = 1000
"""Messages that wait for the socket; more mean that the gateway does not read, and the connection is given up."""

MOST_JOINED = 16
"""Messages that go as the frames of one, to a gateway that reads them so."""

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


class _Outbox(asyncio.Queue[bytes]):
    """What waits for one connection's socket."""

    linger_ms = 0
    """That it may take, once the socket is closed, to reach the gateway's machine."""


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
        self._context = zmq.asyncio.Context()
        self._outbox = _Outbox(QUEUE)
        self._task: asyncio.Task[None] | None = None
        """Of the connection that counts …"""
        self._lines: set[asyncio.Task[None]] = set()
        """… and of all whose socket is open."""
        self._joins = False
        """The gateway, which has welcomed this connection, reads joined messages."""
        self._complained = False
        """The operator knows why nobody is reached, until somebody is."""
        for endpoint in endpoints:
            self._probe(endpoint)

    def reopen(self, tasks: asyncio.TaskGroup, effect: Reconnect) -> None:
        if effect.farewell and self._task is not None:
            tasks.create_task(_part(self._task, self._outbox), name="farewell")
        elif self._task is not None:
            self._task.cancel()
        self._outbox = _Outbox(QUEUE)
        self._joins = False
        self._task = tasks.create_task(self._serve(self._outbox, effect), name="control socket")
        self._lines.add(self._task)
        self._task.add_done_callback(self._lines.discard)

    def send(self, message: ToGateway) -> None:
        try:
            self._outbox.put_nowait(encode(message))
        except asyncio.QueueFull:
            log.warning("%d control messages wait for the gateway; the connection is given up", QUEUE)
            asyncio.get_running_loop().call_soon(self._on_event, Disconnected())

    async def flush(self, seconds: float) -> None:
        """Wait until all that was sent has left, but no longer than ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._outbox.join()
        except TimeoutError:
            log.warning("the gateway did not take the last messages within %g s", seconds)

    async def close(self, linger_ms: int) -> None:
        """What was sent may take ``linger_ms`` to reach the gateway's machine."""
        self._outbox.linger_ms = linger_ms
        for line in tuple(self._lines):
            line.cancel()
        if self._lines:
            await asyncio.wait(tuple(self._lines))
        self._context.term()

    async def _serve(self, outbox: _Outbox, effect: Reconnect) -> None:
        await asyncio.sleep(effect.delay)
        while (opened := self._opened()) is None:  # noqa: ASYNC110 # nobody tells when others close their files
            await asyncio.sleep(RETRY_SECONDS)
        dealer, monitor = opened
        try:
            dealer.connect(effect.endpoint)
        except zmq.ZMQError as error:  # its own were tried at the start: this one a gateway has named
            log.warning("%r is no address of a gateway: %s", effect.endpoint, zmq.strerror(error.errno or 0))

        def tell(event: LinkEvent) -> None:
            if outbox is self._outbox:  # otherwise the connection was given up, and its last messages with it
                if isinstance(event, Received) and isinstance(event.message, Welcome):
                    self._joins = event.message.joins
                self._on_event(event)

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(effect.endpoint, monitor, tell), name="control monitor")
                tasks.create_task(_receive(dealer, tell), name="control receiver")
                tasks.create_task(self._transmit(dealer, outbox), name="control sender")
        finally:
            dealer.disable_monitor()
            monitor.close(linger=0)
            dealer.close(linger=outbox.linger_ms)

    def _opened(self) -> tuple[zmq.asyncio.Socket, zmq.asyncio.Socket] | None:
        """With its monitor; None where this process has no descriptors left for them."""
        dealer: zmq.asyncio.Socket | None = None
        try:
            dealer = self._open()
            return dealer, dealer.get_monitor_socket(_WATCHED)
        except zmq.ZMQError as error:
            log.warning("no socket can be made for the gateway: %s; trying again", zmq.strerror(error.errno or 0))
        if dealer is not None:
            dealer.close(linger=0)
        return None

    def _open(self) -> zmq.asyncio.Socket:
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

    def _encrypt(self, dealer: zmq.asyncio.Socket) -> None:
        if self._curve is not None:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, self._curve.gateway_key.encode())
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._curve.own.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, self._curve.own.secret.encode())

    async def _transmit(self, dealer: zmq.asyncio.Socket, outbox: _Outbox) -> None:
        while True:
            frames = [await outbox.get()]
            while self._joins and not outbox.empty() and len(frames) < MOST_JOINED:
                frames.append(outbox.get_nowait())
            await dealer.send_multipart(frames)
            for _ in frames:
                outbox.task_done()

    async def _watch(self, endpoint: str, monitor: zmq.asyncio.Socket, tell: Callable[[LinkEvent], None]) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
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
                    continue
                self._complained = True
                log.warning(
                    "%s answers and hangs up: no gateway is there, or one that does not accept %s",
                    endpoint,
                    "a server without CURVE keys" if self._curve is None else "the CURVE keys given here",
                )


async def _part(line: asyncio.Task[None], outbox: _Outbox) -> None:
    """End a connection once its last messages have left."""
    outbox.linger_ms = round(FAREWELL_SECONDS * 1000)
    delivered = asyncio.create_task(outbox.join())
    await asyncio.wait({delivered}, timeout=FAREWELL_SECONDS)
    delivered.cancel()
    line.cancel()


async def _receive(dealer: zmq.asyncio.Socket, tell: Callable[[LinkEvent], None]) -> None:
    while True:
        frames = await dealer.recv_multipart()
        for frame in frames:
            try:
                message = decode_to_stage(frame)
            except WireError as error:
                log.warning("a message of the gateway was dropped: %s", error)
            else:
                tell(Received(message))
