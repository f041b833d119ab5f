"""The gateway's ZeroMQ sockets: the only module that imports zmq. Knows bytes and peers, nothing of messages."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Mapping, Sequence
from weakref import WeakSet

import zmq
from zmq.utils import z85

from gateway.stages.liveness import GATEWAYS
from wire.control_codec import Buffer
from wire.record import record
from wire.security import CurveKeys, check_bind

HANDSHAKE_MS = 5_000
SEND_QUEUE = 1000
"""Messages that wait for one peer; a peer that lets more wait does not read."""

BACKLOG = 4096
"""Connections that wait to be accepted, as far as ``net.core.somaxconn`` allows: all the servers of a lost gateway
connect in one moment. The kernels of those for which there is no room try again after a second, then after three.
ZeroMQ's own number is 100."""

IN_A_ROW = 32
"""Messages of one socket that are taken before others have their turn."""

COPIED = 1 << 16
"""Bytes from which on a frame is sent without a copy of it, which costs more than the copy of a small one."""

CLOSED_AFTER_SECONDS = 0.05
"""ZeroMQ announces a lost connection a moment before it forgets the peer behind it."""

WARN_EVERY = 1.0
"""Seconds between two lines about connections that were refused."""

_HUNG_UP = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_NOBLOCK, _POLLIN, _EVENTS = int(zmq.NOBLOCK), int(zmq.POLLIN), int(zmq.EVENTS)
_SEND_MORE = _NOBLOCK | int(zmq.SNDMORE)
"""As plain numbers: arithmetic with pyzmq's flags costs more than the calls that take them."""
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"


log = logging.getLogger(__name__)


class BindError(Exception):
    """A socket cannot be bound; the text is for the operator."""


class Unreachable(Exception):
    """The address of a peer cannot be used."""


@record(frozen=True, slots=True)
class Incoming:
    peer: bytes
    """Its socket identity."""
    frames: tuple[bytes, ...]
    user: str
    """Name under which its key is registered; empty without encryption."""


class _Line:
    """A socket on the event loop: one wake-up for all messages that wait, and no future for each, as pyzmq has it.

    ZeroMQ's descriptor says that something may have happened, and says so once: whatever touches the socket afterwards
    may take note of it on the way. So after every touch it is asked what there is, or nobody would be woken.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._waiter: asyncio.Future[None] | None = None
        self._in_a_row = 0
        self._loop.add_reader(self._descriptor, self._wake)

    async def receive(self, patience: float | None = None) -> list[zmq.Frame]:
        """By one reader at a time. Raises ``TimeoutError`` after ``patience`` seconds in which nothing came."""
        until = None if patience is None else self._loop.time() + patience
        while True:
            if self._in_a_row >= IN_A_ROW:  # or whoever floods a socket would have the event loop for itself
                self._in_a_row = 0
                await asyncio.sleep(0)
            try:
                frames = self._next()
            except zmq.Again:
                self._in_a_row = 0
                await self._readable(until)
            else:
                self._in_a_row += 1
                return frames

    def received(self) -> list[zmq.Frame] | None:
        """What else waits, without waiting: None where nothing does, or others have their turn first."""
        if self._in_a_row >= IN_A_ROW:
            return None
        try:
            frames = self._next()
        except zmq.Again:
            return None
        self._in_a_row += 1
        return frames

    def _next(self) -> list[zmq.Frame]:
        # recv_multipart asks for an option after each frame, which costs as much as the frame.
        frames = [self.socket.recv(_NOBLOCK, copy=False)]
        while frames[-1].more:
            frames.append(self.socket.recv(_NOBLOCK, copy=False))
        return frames

    async def _readable(self, until: float | None) -> None:
        waiter = self._waiter = self._loop.create_future()
        if until is None:
            await waiter
            return
        alarm = self._loop.call_at(until, _give_up, waiter)  # an asyncio.timeout takes five times as long
        try:
            await waiter
        finally:
            alarm.cancel()

    def send(self, frames: Sequence[Buffer]) -> bool:
        """At once, or not at all: False where the peer is gone or does not read."""
        *others, last = frames
        try:
            for frame in others:
                self.socket.send(frame, _SEND_MORE, copy=len(frame) < COPIED)
            self.socket.send(last, _NOBLOCK, copy=len(last) < COPIED)
        except zmq.ZMQError as error:
            if error.errno in (errno.EHOSTUNREACH, errno.EAGAIN):
                return False
            raise
        finally:
            self._wake()
        return True

    def discard(self) -> None:
        """All that waits to be received."""
        while True:
            try:
                self.socket.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return

    def _wake(self) -> None:
        # Asked even if nobody waits: until then the descriptor stays readable, and the loop would turn for nothing.
        waiting = int(self.socket.getsockopt(_EVENTS)) & _POLLIN
        if waiting and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        if not self.socket.closed:
            self._loop.remove_reader(self._descriptor)
            self.socket.close(linger=0)


def _give_up(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


class Router:
    """A bound socket that answers many peers."""

    def __init__(self, line: _Line, monitor: _Line, endpoint: str, *, encrypted: bool) -> None:
        self.endpoint = endpoint
        """The bound address, with the port chosen for ``*`` filled in."""
        self._line = line
        self._encrypted = encrypted
        self._monitor = monitor

    async def receive(self) -> Incoming:
        return self._incoming(await self._line.receive())

    async def receive_all(self) -> list[Incoming]:
        """All that waits, at least one message and not many."""
        found = [await self.receive()]
        while (frames := self._line.received()) is not None:
            found.append(self._incoming(frames))
        return found

    def _incoming(self, message: list[zmq.Frame]) -> Incoming:
        peer, *frames = message
        user = str(frames[0].get("User-Id")) if self._encrypted and frames else ""
        return Incoming(peer.bytes, tuple([frame.bytes for frame in frames]), user)

    def send(self, peer: bytes, frames: Sequence[Buffer]) -> bool:
        """Send at once, or not at all: False where the peer is gone or does not read."""
        return self._line.send([peer, *frames])

    async def disconnection(self) -> None:
        """Wait until some peer, it cannot be said which, has lost its connection. Several at once count as one."""
        await self._monitor.receive()
        await asyncio.sleep(CLOSED_AFTER_SECONDS)
        self._monitor.discard()

    def close(self) -> None:
        self._line.socket.disable_monitor()
        self._monitor.close()
        self._line.close()


class Dealer:
    """A socket connected to one peer."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._monitor: _Line | None = None

    def watch(self, monitor: _Line) -> None:
        """``monitor`` tells when the peer hangs up."""
        self._monitor = monitor

    async def receive(self, patience: float | None = None) -> list[Buffer]:
        """Raises ``TimeoutError`` after ``patience`` seconds in which nothing came."""
        return [frame.buffer for frame in await self._line.receive(patience)]

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Send at once, or not at all: False where too much waits already."""
        return self._line.send(frames)

    async def hung_up(self) -> None:
        """Until the peer has closed the connection, perhaps in the handshake; only of a ``watched`` one."""
        if self._monitor is None:
            raise RuntimeError("this connection is not watched")
        await self._monitor.receive()

    def close(self) -> None:
        if self._monitor is not None:
            self._line.socket.disable_monitor()
            self._monitor.close()
        self._line.close()


class Sockets:
    """Makes sockets; with ``keys`` all of them are encrypted, and peers are let in by ``allowed`` (name → key).

    Gateways share their keys, so ``keys`` let in as well: as ``GATEWAYS``.
    """

    def __init__(
        self, *, keys: CurveKeys | None = None, allowed: Mapping[str, str] | None = None, allow_plaintext: bool = False
    ) -> None:
        self._keys = keys
        self._names = {key: name for name, key in (allowed or {}).items()}
        if keys is not None:
            self._names.setdefault(keys.public, GATEWAYS)
        self._allow_plaintext = allow_plaintext
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._lines: WeakSet[_Line] = WeakSet()
        self._zap: zmq.Socket[bytes] | None = None
        self._warned_at = -WARN_EVERY
        if keys is not None:  # bound before any other socket, or those would let everybody in
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind(_ZAP_ENDPOINT)

    def router(self, bind: str, what: str, max_bytes: int) -> Router:
        """Bind ``what``, such as "control", to accept frames of ``max_bytes`` at most. Raises ``BindError``."""
        try:
            check_bind(bind, self._keys, allow_plaintext=self._allow_plaintext)
        except ValueError as error:
            raise BindError(f"the {what} socket: {error}") from error
        socket = self._socket(zmq.ROUTER, max_bytes)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.BACKLOG, BACKLOG)
        if self._keys is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
            socket.setsockopt(zmq.ZAP_DOMAIN, b"stage-servers")
        try:
            socket.bind(bind)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            hint = "; choose another port, or * for any" if error.errno == errno.EADDRINUSE else ""
            raise BindError(f"the {what} socket cannot be bound to {bind}: {_why(error)}{hint}") from error
        # ZeroMQ would report an IPv4 address in its IPv6 notation.
        port = socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        monitor = self._line(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED))
        endpoint = f"{bind.rpartition(':')[0]}:{port}"
        return Router(self._line(socket), monitor, endpoint, encrypted=self._keys is not None)

    def dealer(
        self, endpoint: str, public_key: str, max_bytes: int, *, watched: bool = False, identity: str = ""
    ) -> Dealer:
        """Connect to ``endpoint``, whose owner has ``public_key``. Raises ``Unreachable``.

        With an ``identity`` nothing waits for a connection: what is sent while there is none is lost.
        """
        if bool(public_key) != (self._keys is not None):
            raise Unreachable(f"{endpoint}: either both sides need CURVE keys, or neither")
        dealer: Dealer | None = None
        try:
            socket = self._socket(zmq.DEALER, max_bytes)
            dealer = Dealer(self._line(socket))
            if identity:
                socket.setsockopt(zmq.IDENTITY, identity.encode())
                socket.setsockopt(zmq.IMMEDIATE, 1)
            if watched:
                dealer.watch(self._line(socket.get_monitor_socket(_HUNG_UP)))
            if self._keys is not None:
                socket.setsockopt(zmq.CURVE_SERVERKEY, public_key.encode())
                socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public.encode())
                socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            if dealer is None:
                raise Unreachable(f"{endpoint!r}: no socket can be made here: {_why(error)}") from error
            dealer.close()
            raise Unreachable(f"{endpoint!r} is no address that can be reached: {_why(error)}") from error
        return dealer

    async def authenticate(self) -> None:
        """Decide who may connect (ZAP, RFC 27), for ever; returns at once without keys."""
        if self._zap is None:
            return
        line = self._line(self._zap)
        while True:
            frames = [frame.bytes for frame in await line.receive()]
            version, request, _domain, address, _identity, mechanism, *credentials = frames
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
            name = self._names.get(key)
            if name is None:
                self._warn(address.decode(errors="replace").removeprefix("::ffff:"), key)
            status, text = (b"200", b"OK") if name is not None else (b"400", b"key not registered")
            line.send([version, request, status, text, (name or "").encode(), b""])

    def _warn(self, address: str, key: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._warned_at >= WARN_EVERY:
            self._warned_at = now
            log.warning(
                "a connection from %s was refused: its CURVE key %s is not registered", address, key or "(none)"
            )

    def close(self) -> None:
        """Also closes what is still open."""
        for line in tuple(self._lines):
            line.close()
        self._context.destroy(linger=0)

    def _line(self, socket: zmq.Socket[bytes]) -> _Line:
        line = _Line(socket)
        self._lines.add(line)
        return line

    def _socket(self, kind: int, max_bytes: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        return socket


def _why(error: zmq.ZMQError) -> str:
    return zmq.strerror(error.errno or 0)  # pyzmq's own text repeats the address
