"""The control socket: a DEALER that is opened anew whenever the gateway was lost. The only asyncio socket here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from stage_server.runtime.events import Connected, Denied, Disconnected, Received
from wire.control_codec import MAX_TO_STAGE_BYTES, decode_to_stage, encode
from wire.errors import WireError
from wire.security import CurveKeys
from wire.to_gateway import ToGateway

QUEUE = 1000
"""Messages that wait for the socket; more mean that the gateway does not read, and the connection is given up."""

_DENIED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _DENIED

log = logging.getLogger(__name__)

LinkEvent = Connected | Disconnected | Denied | Received


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
        self, endpoint: str, identity: str, curve: Curve | None, on_event: Callable[[LinkEvent], None]
    ) -> None:
        """Raises ``BadEndpoint``."""
        self._endpoint = endpoint
        self._identity = identity.encode()
        self._curve = curve
        self._on_event = on_event
        self._context = zmq.asyncio.Context()
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(QUEUE)
        self._task: asyncio.Task[None] | None = None
        self._linger_ms = 0
        self._complained = False
        """The operator knows why nobody is reached, until somebody is."""
        self._probe()

    def reopen(self, tasks: asyncio.TaskGroup, delay: float) -> None:
        """Drop the socket and what waits in it; open another after ``delay`` seconds."""
        self._drop()
        self._outbox = asyncio.Queue(QUEUE)
        self._task = tasks.create_task(self._serve(self._outbox, delay), name="control socket")

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
        self._linger_ms = linger_ms
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._context.term()

    def _drop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _serve(self, outbox: asyncio.Queue[bytes], delay: float) -> None:
        await asyncio.sleep(delay)
        dealer = self._open()
        monitor = dealer.get_monitor_socket(_WATCHED)
        dealer.connect(self._endpoint)

        def tell(event: LinkEvent) -> None:
            if outbox is self._outbox:  # otherwise the connection was given up, and its last messages with it
                self._on_event(event)

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(monitor, tell), name="control monitor")
                tasks.create_task(_receive(dealer, tell), name="control receiver")
                tasks.create_task(_transmit(dealer, outbox), name="control sender")
        finally:
            dealer.disable_monitor()
            monitor.close(linger=0)
            dealer.close(linger=self._linger_ms)

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

    def _probe(self) -> None:
        """Find out now whether the address is one; nothing is sent."""
        with self._open() as dealer:
            try:
                dealer.connect(self._endpoint)
            except zmq.ZMQError as error:
                raise BadEndpoint(f"{self._endpoint!r} is no address of a gateway: {error.strerror}") from error

    def _encrypt(self, dealer: zmq.asyncio.Socket) -> None:
        if self._curve is not None:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, self._curve.gateway_key.encode())
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._curve.own.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, self._curve.own.secret.encode())

    async def _watch(self, monitor: zmq.asyncio.Socket, tell: Callable[[LinkEvent], None]) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._complained = False
                tell(Connected())
            elif event == zmq.EVENT_DISCONNECTED:
                tell(Disconnected())
            elif event & _DENIED and not self._complained:
                self._complained = True
                tell(Denied())
                log.warning(
                    "%s answers and hangs up: no gateway is there, or one that does not accept %s",
                    self._endpoint,
                    "a server without CURVE keys" if self._curve is None else "the CURVE keys given here",
                )


async def _receive(dealer: zmq.asyncio.Socket, tell: Callable[[LinkEvent], None]) -> None:
    while True:
        frames = await dealer.recv_multipart()
        try:
            message = decode_to_stage(frames[-1])
        except WireError as error:
            log.warning("a message of the gateway was dropped: %s", error)
            continue
        tell(Received(message))


async def _transmit(dealer: zmq.asyncio.Socket, outbox: asyncio.Queue[bytes]) -> None:
    while True:
        await dealer.send(await outbox.get())
        outbox.task_done()
