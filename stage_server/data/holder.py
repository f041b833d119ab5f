"""The socket that serves this process's outputs to whoever pulls them.

One thread and one ZeroMQ context of its own: a computing device never waits for it, nor it for the device. A sent
buffer is referenced by ZeroMQ until its last byte has left, so a released output's memory outlives its transfers.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from stage_server.data.multipart import receive, send
from wire.control_codec import Buffer
from wire.errors import WireError
from wire.security import Allow, CurveKeys, check_bind
from wire.transfer import MAX_FIELDS_BYTES, MAX_WAIT_MS, Get, Lookup, serve
from wire.types import Handle

COPY_BELOW = 64 << 10
"""Bytes; handing over a reference costs more than copying so little."""

SEND_QUEUE = 256
"""Answers that wait for one slow consumer; one that asks for more without reading loses them."""

BURST = 16
"""Requests that are answered in a row, before the holder looks for anything else."""

MAX_KEPT = 64
"""Requests that wait for what is not there yet; for more it is missing."""

MAX_CONNECTIONS = 512
HANDSHAKE_MS = 5_000
_READ, _EVENTS = int(zmq.POLLIN), int(zmq.EVENTS)
"""As plain numbers, see ``multipart``."""
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_CLOSE_SECONDS = 5.0

log = logging.getLogger(__name__)


class BindError(Exception):
    """The data socket cannot be bound; the text is for the operator."""


@dataclass(slots=True)
class HolderStatistics:
    answered: int = 0
    unreadable: int = 0
    """Requests that nobody could make sense of."""
    undelivered: int = 0
    """Answers to consumers that were gone or did not read."""
    denied: int = 0
    """Connections that the allow-list or their number turned away."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A request whose answer waits."""

    peer: bytes
    frames: list[bytes]
    handle: Handle
    until: float


class Holder:
    """Serves ``lookup`` from construction until ``close``.

    ``endpoint`` is the bound address, with the port chosen for ``tcp://host:*`` filled in.
    """

    def __init__(
        self,
        bind: str,
        lookup: Lookup,
        *,
        keys: CurveKeys | None = None,
        allow: Allow | None = None,
        allow_plaintext: bool = False,
        max_connections: int = MAX_CONNECTIONS,
        identity: str = "",
        aliases: Collection[str] = (),
    ) -> None:
        """``identity``: name/incarnation of this server, by which others recognise it, and those with which it shares
        the socket as well: ``aliases``.

        With ``keys`` every connection is encrypted; with ``allow``, only public keys that it accepts get in.

        ``lookup`` and ``allow`` are called on the holder's thread. Raises ``BindError``.
        """
        if allow is not None and keys is None:
            raise BindError("an allow-list of public keys needs CURVE keys for the data socket")
        self.statistics = HolderStatistics()
        self._lookup = lookup
        self._allow = allow
        self._identity = identity
        self._aliases = aliases
        self._max_connections = max_connections
        self._connections: set[int] = set()
        """File descriptors."""
        self._context = zmq.Context(io_threads=1)
        self._router = self._context.socket(zmq.ROUTER)
        self._zap = self._context.socket(zmq.ROUTER)
        self._monitor = self._router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._stop, self._stopped = socket.socketpair()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._lock = threading.Lock()
        """Of the router, and of what follows."""
        self._kept: list[_Kept] = []
        self._may_have_more = True
        """Requests: its descriptor says so only once, and to whichever thread uses the socket next."""
        self._configure(keys)
        try:
            self.endpoint = self._bind(bind, keys, allow_plaintext)
        except BindError:
            self._release()
            raise
        self._thread = threading.Thread(target=self._loop, name="data-holder", daemon=True)
        self._thread.start()

    def look_again(self) -> None:
        """What somebody waits for may be there now. From any thread, which answers by itself: a hop to another takes as
        long as a small transfer, and longer where that one has to wait for a processor.
        """
        if not self._lock.acquire(blocking=False):
            self._rouse()
            return
        try:
            if self._kept and not self._router.closed:
                self._answer_kept()
                if self._is_readable():
                    self._rouse()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Stop serving; answers under way are dropped. Closing twice is harmless."""
        if self._stop.fileno() < 0:
            return
        self._stop.close()
        self._thread.join(_CLOSE_SECONDS)

    def _configure(self, keys: CurveKeys | None) -> None:
        router = self._router
        router.ipv6 = True
        router.linger = 0
        router.maxmsgsize = MAX_FIELDS_BYTES
        router.router_mandatory = True
        router.sndhwm = SEND_QUEUE
        router.backlog = self._max_connections  # whoever waits for its kernel to dial again waits for a second
        router.handshake_ivl = HANDSHAKE_MS
        router.copy_threshold = COPY_BELOW
        if keys is not None:
            router.curve_server = True
            router.curve_secretkey = keys.secret.encode()
        router.zap_domain = b"data"
        self._zap.bind(_ZAP_ENDPOINT)

    def _bind(self, bind: str, keys: CurveKeys | None, allow_plaintext: bool) -> str:
        try:
            check_bind(bind, keys, allow_plaintext=allow_plaintext)
            self._router.bind(bind)
        except ValueError as error:
            raise BindError(str(error)) from error
        except zmq.ZMQError as error:
            hint = "; choose another port, or * for any" if error.errno == errno.EADDRINUSE else ""
            raise BindError(
                f"the data socket cannot be bound to {bind}: {zmq.strerror(error.errno or 0)}{hint}"
            ) from error
        # ZeroMQ would report an IPv4 address in its IPv6 notation.
        port = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        return bind.rpartition(":")[0] + ":" + port

    def _loop(self) -> None:
        poller = zmq.Poller()
        descriptor = int(self._router.getsockopt(zmq.FD))  # the socket itself must not be polled while others use it
        for source in (descriptor, self._monitor, self._zap, self._stopped, self._woken):
            poller.register(source, zmq.POLLIN)
        try:
            while self._stopped.fileno() not in (ready := dict(poller.poll(self._patience_ms()))):
                if self._monitor in ready:
                    self._count()
                if self._zap in ready:
                    self._admit()
                if self._woken.fileno() in ready:
                    with suppress(BlockingIOError):
                        self._woken.recv(4096)
                with self._lock:
                    self._answer_some()
                    self._answer_kept()
                    self._may_have_more = self._is_readable()
        finally:
            with self._lock:
                self._release()

    def _answer_some(self) -> None:
        for _ in range(BURST):
            try:
                peer, *frames = [frame.bytes for frame in receive(self._router)]
            except zmq.Again:
                return
            self._answer(peer, frames)

    def _rouse(self) -> None:
        with suppress(BlockingIOError, OSError):  # full: it is awake anyway; closed: nobody is served any more
            self._wake.send(b"\0")

    def _is_readable(self) -> bool:
        return bool(int(self._router.getsockopt(_EVENTS)) & _READ)

    def _patience_ms(self) -> int | None:
        if self._may_have_more:
            return 0
        with self._lock:
            until = min((kept.until for kept in self._kept), default=None)
        return None if until is None else max(0, int(1e3 * (until - monotonic())) + 1)

    def _answer_kept(self) -> None:
        now = monotonic()
        due = [kept for kept in self._kept if kept.until <= now or self._lookup(kept.handle) is not None]
        for kept in due:
            self._kept.remove(kept)
            self._answer(kept.peer, kept.frames, may_keep=False)

    def _keep(self, peer: bytes, frames: list[bytes], request: Get) -> bool:
        if len(self._kept) >= MAX_KEPT:
            return False
        until = monotonic() + min(request.wait_ms, MAX_WAIT_MS) / 1e3
        self._kept.append(_Kept(peer, frames, request.handle, until))
        return True

    def _answer(self, peer: bytes, frames: list[bytes], *, may_keep: bool = True) -> None:
        keep = partial(self._keep, peer, frames) if may_keep else lambda _: False
        try:
            answers = serve(frames, self._lookup, self._identity, self._aliases, keep)
        except WireError as error:
            self.statistics.unreadable += 1
            log.debug("data request dropped: %s", error)
            return
        for answer in answers:
            self._send(peer, answer)

    def _send(self, peer: bytes, answer: Sequence[Buffer]) -> None:
        try:
            send(self._router, [peer, *answer], copy=False)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            self.statistics.undelivered += 1
        else:
            self.statistics.answered += 1

    def _count(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._connections.add(event["value"])
            else:
                self._connections.discard(event["value"])

    def _admit(self) -> None:
        """Answer one ZAP request (RFC 27): may this peer connect?"""
        peer, empty, version, request_id, _domain, _address, _identity, mechanism, *credentials = (
            self._zap.recv_multipart()
        )
        self._count()  # this one included
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
        accepted = len(self._connections) <= self._max_connections and (self._allow is None or self._allow(key))
        status, text = (b"200", b"OK") if accepted else (b"400", b"not allowed")
        self.statistics.denied += not accepted
        self._zap.send_multipart([peer, empty, version, request_id, status, text, key.encode(), b""])

    def _release(self) -> None:
        for end in (self._stopped, self._stop, self._woken, self._wake):
            end.close()
        self._context.destroy(linger=0)
