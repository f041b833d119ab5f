"""The thread that fetches inputs from their holders, many at once, while the device computes.

It owns one DEALER per holder and sleeps until an answer, a request, a lost connection or the next time limit.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import zmq
from zmq.utils.monitor import recv_monitor_message

from stage_server.data.pool import BufferPool
from wire.bundle import LIMITS, Bundle, Limits
from wire.control_codec import Buffer
from wire.errors import InputLost, Loss, WireError
from wire.security import CurveKeys, valid_key
from wire.to_stage import InputRef
from wire.transfer import MAX_ANSWER_BYTES, Answer, Fetch, Lookup, State, decode_answer

MAX_FETCHES = 256
"""Unfinished fetches of one consumer."""

MAX_FETCHES_PER_HOLDER = 8
"""Transfers under way on one connection; more wait their turn, so that chunks in its queue stay few."""

MAX_IDLE_CONNECTIONS = 16
STALL_SECONDS = 10.0
"""Silence of a holder after which a transfer is given up."""

_CLOSE_SECONDS = 5.0
_FAULTS: dict[int, str] = {zmq.EVENT_DISCONNECTED: "connection lost", zmq.EVENT_CONNECT_RETRIED: "connection refused"}
_LOST = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

log = logging.getLogger(__name__)

Allocate = Callable[[int], memoryview]
"""Bytes → a writable, contiguous buffer of exactly that size. Raises ``MemoryError`` where there is no room."""


class TooManyFetches(RuntimeError):
    """More than ``MAX_FETCHES`` are unfinished."""


@dataclass(slots=True, eq=False)
class _Transfer:
    ref: InputRef
    fetch: Fetch
    future: Future[Bundle]
    deadline: float
    silent_until: float = math.inf
    """When the holder's silence has lasted too long; counts while the transfer is under way."""

    @property
    def limit(self) -> float:
        return min(self.deadline, self.silent_until)


@dataclass(slots=True, eq=False)
class _Holder:
    """A connection and what goes over it."""

    endpoint: str
    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    active: dict[int, _Transfer] = field(default_factory=dict)
    waiting: deque[_Transfer] = field(default_factory=deque)

    def transfers(self) -> Iterator[_Transfer]:
        yield from self.active.values()
        yield from self.waiting

    @property
    def idle(self) -> bool:
        return not self.active and not self.waiting

    def send(self, messages: list[list[Buffer]]) -> None:
        for message in messages:
            self.dealer.send_multipart(message, flags=zmq.NOBLOCK)

    def forget(self, transfer: _Transfer) -> None:
        self.active.pop(transfer.fetch.transfer, None)
        with suppress(ValueError):
            self.waiting.remove(transfer)


class Consumer:
    """``fetch`` and ``close`` may be called from any thread; futures complete on the consumer's thread."""

    def __init__(
        self,
        *,
        keys: CurveKeys | None = None,
        allocate: Allocate | None = None,
        local: Lookup = lambda _: None,
        limits: Limits = LIMITS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """``local`` finds outputs of this very process, which are handed over without a transfer."""
        self._keys = keys
        self._allocate = allocate or BufferPool()
        self._local = local
        self._limits = limits
        self._stall_seconds = stall_seconds
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._unfinished: set[Future[Bundle]] = set()
        self._closed = False
        self._commands: deque[Callable[[], None]] = deque()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._context = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._poller.register(self._woken, zmq.POLLIN)
        self._holders: dict[tuple[str, str], _Holder] = {}
        """In the order of their last use."""
        self._ready: dict[object, Callable[[], object]] = {self._woken.fileno(): self._run_commands}
        self._thread = threading.Thread(target=self._loop, name="data-consumer", daemon=True)
        self._thread.start()

    def fetch(self, ref: InputRef, deadline_seconds: float) -> Future[Bundle]:
        """The bundle behind ``ref``, within ``deadline_seconds`` from now. Cancelling the future ends the transfer.

        The future fails with ``InputLost`` and nothing else. Raises ``TooManyFetches``.
        """
        future: Future[Bundle] = Future()
        bundle = self._local(ref.handle)
        if bundle is not None:
            future.set_result(bundle)
            return future
        self._admit(future)
        fetch = Fetch(ref.handle, next(self._numbers), limits=self._limits)
        transfer = _Transfer(ref, fetch, future, time.monotonic() + deadline_seconds)
        future.add_done_callback(lambda _: self._finished(transfer))
        self._call(partial(self._begin, transfer))
        return future

    def close(self) -> None:
        """End all transfers; their futures are cancelled. Closing twice is harmless."""
        with self._lock:
            self._closed = True
        self._call(_nothing)
        self._thread.join(_CLOSE_SECONDS)

    def _admit(self, future: Future[Bundle]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the consumer is closed")
            if len(self._unfinished) >= MAX_FETCHES:
                raise TooManyFetches(f"{MAX_FETCHES} fetches are unfinished")
            self._unfinished.add(future)

    def _finished(self, transfer: _Transfer) -> None:
        with self._lock:
            self._unfinished.discard(transfer.future)
        if transfer.future.cancelled():
            transfer.future.set_running_or_notify_cancel()  # wakes those who wait for it
            self._call(partial(self._end, transfer))

    def _call(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        with suppress(BlockingIOError, OSError):  # full: it is awake anyway; closed: nobody listens any more
            self._wake.send(b"\0")

    # From here on: the consumer's thread.

    def _loop(self) -> None:
        try:
            while not self._closed:
                for source, _ in self._poller.poll(self._wait_ms()):
                    # An earlier handler of this round may have closed the socket.
                    self._ready.get(source, _nothing)()
                self._expire()
        finally:
            self._shut()

    def _wait_ms(self) -> int | None:
        limits = [transfer.limit for holder in self._holders.values() for transfer in holder.transfers()]
        return max(0, math.ceil((min(limits) - time.monotonic()) * 1e3)) if limits else None

    def _run_commands(self) -> None:
        self._woken.recv(4096)
        while self._commands:
            self._commands.popleft()()

    def _begin(self, transfer: _Transfer) -> None:
        if transfer.future.done():
            return
        try:
            holder = self._connected(transfer.ref)
        except InputLost as lost:
            _fail(transfer, lost)
            return
        holder.waiting.append(transfer)
        self._start_waiting(holder)

    def _start_waiting(self, holder: _Holder) -> None:
        while holder.waiting and len(holder.active) < MAX_FETCHES_PER_HOLDER:
            transfer = holder.waiting.popleft()
            holder.active[transfer.fetch.transfer] = transfer
            transfer.silent_until = time.monotonic() + self._stall_seconds
            holder.send([transfer.fetch.request()])

    def _end(self, transfer: _Transfer) -> None:
        """Forget the transfer, whatever has become of it; what still arrives for it is ignored."""
        holder = self._holders.get((transfer.ref.endpoint, transfer.ref.public_key))
        if holder is not None:
            holder.forget(transfer)
            self._start_waiting(holder)

    def _expire(self) -> None:
        now = time.monotonic()
        late = [t for holder in self._holders.values() for t in holder.transfers() if t.limit <= now]
        for transfer in late:
            self._end(transfer)
            reason = Loss.DEADLINE if transfer.deadline <= now else Loss.STALLED
            _fail(transfer, InputLost(transfer.ref.handle, reason, f"holder {transfer.ref.endpoint}"))

    def _receive(self, holder: _Holder) -> bool:
        """Take one answer; whether there was one."""
        try:
            frames = [frame.buffer for frame in holder.dealer.recv_multipart(zmq.NOBLOCK, copy=False)]
            answer, body = decode_answer(frames)
        except zmq.Again:
            return False
        except WireError as error:
            self._lose(holder, Loss.MALFORMED, str(error))
            return False
        transfer = holder.active.get(answer.transfer)
        if transfer is not None:
            self._advance(holder, transfer, answer, body)
        return True

    def _advance(self, holder: _Holder, transfer: _Transfer, answer: Answer, body: Buffer) -> None:
        fetch = transfer.fetch
        transfer.silent_until = time.monotonic() + self._stall_seconds
        try:
            holder.send(fetch.feed(answer, body))
            if fetch.state is State.OFFERED:
                holder.send(fetch.accept(self._allocate(fetch.nbytes)))
        except InputLost as lost:
            self._end(transfer)
            _fail(transfer, lost)
        except MemoryError as error:
            self._end(transfer)
            _fail(transfer, InputLost(fetch.handle, Loss.TOO_LARGE, f"no room for {fetch.nbytes} bytes: {error}"))
        else:
            if fetch.state is State.COMPLETE:
                self._end(transfer)
                _succeed(transfer)

    # Connections.

    def _connected(self, ref: InputRef) -> _Holder:
        key = (ref.endpoint, ref.public_key)
        holder = self._holders.pop(key, None) or self._connect(ref)
        self._holders[key] = holder
        self._close_idle()
        return holder

    def _connect(self, ref: InputRef) -> _Holder:
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.ipv6 = True
        dealer.linger = 0
        dealer.maxmsgsize = MAX_ANSWER_BYTES
        monitor = dealer.get_monitor_socket(_LOST)
        holder = _Holder(ref.endpoint, dealer, monitor)
        try:
            self._secure(dealer, ref)
            dealer.connect(ref.endpoint)
        except InputLost:
            _close(holder)
            raise
        except zmq.ZMQError as error:
            _close(holder)
            raise InputLost(
                ref.handle, Loss.UNREACHABLE, f"holder {ref.endpoint!r}: {zmq.strerror(error.errno or 0)}"
            ) from error
        for source, handler in ((dealer, self._receive), (monitor, self._check_lost)):
            self._poller.register(source, zmq.POLLIN)
            self._ready[source] = partial(handler, holder)
        return holder

    def _secure(self, dealer: zmq.Socket[bytes], ref: InputRef) -> None:
        if self._keys is None and not ref.public_key:
            return
        if self._keys is None:
            raise _unsafe(ref, "its holder asks for encryption, and no CURVE keys are configured here")
        if not valid_key(ref.public_key):
            raise _unsafe(ref, "CURVE keys are configured here, and its holder's public key is missing or not one")
        dealer.curve_serverkey = ref.public_key.encode()
        dealer.curve_publickey = self._keys.public.encode()
        dealer.curve_secretkey = self._keys.secret.encode()

    def _check_lost(self, holder: _Holder) -> None:
        event = recv_monitor_message(holder.monitor, zmq.NOBLOCK)
        while self._receive(holder):  # what came before the connection was lost still counts
            pass
        self._lose(holder, Loss.UNREACHABLE, _FAULTS.get(event["event"], "the handshake failed"))

    def _lose(self, holder: _Holder, reason: Loss, detail: str) -> None:
        if holder.dealer.closed:
            return
        self._drop(holder)
        for transfer in list(holder.transfers()):
            _fail(transfer, InputLost(transfer.ref.handle, reason, f"holder {holder.endpoint}: {detail}"))

    def _close_idle(self) -> None:
        """Never the one used last, which is about to be used."""
        idle = [holder for holder in list(self._holders.values())[:-1] if holder.idle]
        for holder in idle[: max(0, len(idle) - MAX_IDLE_CONNECTIONS)]:
            self._drop(holder)

    def _drop(self, holder: _Holder) -> None:
        self._holders = {key: other for key, other in self._holders.items() if other is not holder}
        for source in (holder.dealer, holder.monitor):
            if self._ready.pop(source, None) is not None:
                self._poller.unregister(source)
        _close(holder)

    def _shut(self) -> None:
        with self._lock:
            self._closed = True
            unfinished = tuple(self._unfinished)
        self._context.destroy(linger=0)
        self._wake.close()
        self._woken.close()
        for future in unfinished:
            future.cancel()


def _nothing() -> None:
    return None


def _close(holder: _Holder) -> None:
    holder.dealer.disable_monitor()
    holder.monitor.close(linger=0)
    holder.dealer.close(linger=0)


def _unsafe(ref: InputRef, detail: str) -> InputLost:
    return InputLost(ref.handle, Loss.REFUSED, detail)


def _fail(transfer: _Transfer, lost: InputLost) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        transfer.future.set_exception(lost)


def _succeed(transfer: _Transfer) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        transfer.future.set_result(transfer.fetch.bundle)
