"""The gateway's ZeroMQ sockets: the only module that imports zmq. Knows bytes and peers, nothing of messages."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils import z85

from wire.control_codec import Buffer
from wire.security import CurveKeys, check_bind

HANDSHAKE_MS = 5_000
SEND_QUEUE = 1000
"""Messages that wait for one peer; a peer that lets more wait does not read."""

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
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"


log = logging.getLogger(__name__)


class BindError(Exception):
    """A socket cannot be bound; the text is for the operator."""


class Unreachable(Exception):
    """The address of a peer cannot be used."""


@dataclass(frozen=True, slots=True)
class Incoming:
    peer: bytes
    """Its socket identity."""
    frames: tuple[bytes, ...]
    user: str
    """Name under which its key is registered; empty without encryption."""


class Router:
    """A bound socket that answers many peers."""

    def __init__(self, socket: zmq.asyncio.Socket, endpoint: str, *, encrypted: bool) -> None:
        self.endpoint = endpoint
        """The bound address, with the port chosen for ``*`` filled in."""
        self._socket = socket
        self._encrypted = encrypted
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    async def receive(self) -> Incoming:
        await _let_others_run()
        peer, *frames = await self._socket.recv_multipart(copy=False)
        user = str(frames[0].get("User-Id")) if self._encrypted and frames else ""
        return Incoming(peer.bytes, tuple(frame.bytes for frame in frames), user)

    def send(self, peer: bytes, frames: Sequence[Buffer]) -> bool:
        """Send at once, or not at all: False where the peer is gone or does not read."""
        return _send_now(self._socket, [peer, *frames])

    async def disconnection(self) -> None:
        """Wait until some peer, it cannot be said which, has lost its connection. Several at once count as one."""
        await self._monitor.recv_multipart()
        await asyncio.sleep(CLOSED_AFTER_SECONDS)
        while await self._monitor.poll(0):
            await self._monitor.recv_multipart()

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)


class Dealer:
    """A socket connected to one peer."""

    def __init__(self, socket: zmq.asyncio.Socket, monitor: zmq.asyncio.Socket | None) -> None:
        self._socket = socket
        self._monitor = monitor

    async def receive(self) -> list[Buffer]:
        await _let_others_run()
        return [frame.buffer for frame in await self._socket.recv_multipart(copy=False)]

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Send at once, or not at all: False where too much waits already."""
        return _send_now(self._socket, frames)

    async def hung_up(self) -> None:
        """Until the peer has closed the connection, perhaps in the handshake; only of a ``watched`` one."""
        if self._monitor is None:
            raise RuntimeError("this connection is not watched")
        await self._monitor.recv_multipart()

    def close(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._socket.close(linger=0)


class Sockets:
    """Makes sockets; with ``keys`` all of them are encrypted, and peers are let in by ``allowed`` (name → key)."""

    def __init__(
        self, *, keys: CurveKeys | None = None, allowed: Mapping[str, str] | None = None, allow_plaintext: bool = False
    ) -> None:
        self._keys = keys
        self._names = {key: name for name, key in (allowed or {}).items()}
        self._allow_plaintext = allow_plaintext
        self._context = zmq.asyncio.Context()
        self._zap: zmq.asyncio.Socket | None = None
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
        return Router(socket, f"{bind.rpartition(':')[0]}:{port}", encrypted=self._keys is not None)

    def dealer(self, endpoint: str, public_key: str, max_bytes: int, *, watched: bool = False) -> Dealer:
        """Connect to ``endpoint``, whose owner has ``public_key``. Raises ``Unreachable``."""
        if bool(public_key) != (self._keys is not None):
            raise Unreachable(f"{endpoint}: either both sides need CURVE keys, or neither")
        socket = self._socket(zmq.DEALER, max_bytes)
        monitor = socket.get_monitor_socket(_HUNG_UP) if watched else None
        dealer = Dealer(socket, monitor)
        try:
            if self._keys is not None:
                socket.setsockopt(zmq.CURVE_SERVERKEY, public_key.encode())
                socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public.encode())
                socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            dealer.close()
            raise Unreachable(f"{endpoint!r} is no address that can be reached: {_why(error)}") from error
        return dealer

    async def authenticate(self) -> None:
        """Decide who may connect (ZAP, RFC 27), for ever; returns at once without keys."""
        while self._zap is not None:
            version, request, _domain, address, _identity, mechanism, *credentials = await self._zap.recv_multipart()
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
            name = self._names.get(key)
            if name is None:
                self._warn(address.decode(errors="replace").removeprefix("::ffff:"), key)
            status, text = (b"200", b"OK") if name is not None else (b"400", b"key not registered")
            await self._zap.send_multipart([version, request, status, text, (name or "").encode(), b""])

    def _warn(self, address: str, key: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._warned_at >= WARN_EVERY:
            self._warned_at = now
            log.warning(
                "a connection from %s was refused: its CURVE key %s is not registered", address, key or "(none)"
            )

    def close(self) -> None:
        """Also closes what is still open."""
        self._context.destroy(linger=0)

    def _socket(self, kind: int, max_bytes: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        return socket


async def _let_others_run() -> None:
    """To receive what is there already never yields: whoever floods a socket would have the event loop for itself."""
    await asyncio.sleep(0)


def _why(error: zmq.ZMQError) -> str:
    return zmq.strerror(error.errno or 0)  # pyzmq's own text repeats the address


def _send_now(socket: zmq.asyncio.Socket, frames: Sequence[Buffer]) -> bool:
    sent: Any = socket.send_multipart(frames, flags=zmq.NOBLOCK, copy=False)
    error = sent.exception()  # with NOBLOCK the future is done already
    if error is None:
        return True
    if isinstance(error, zmq.ZMQError) and error.errno in (errno.EHOSTUNREACH, errno.EAGAIN):
        return False
    raise error
