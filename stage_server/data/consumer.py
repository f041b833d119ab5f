"""Fetches inputs from their holders, many at once, while the device computes.

There is one DEALER per holder. Whoever asks sends the request itself, as a hop to another thread takes as long as a
small transfer; a thread waits for answers, lost connections and the next time limit. Both use the sockets under one
lock. ZeroMQ allows that as long as nobody polls a socket meanwhile: the thread polls their descriptors, outside the
lock. A descriptor says only once that there is something, and whatever touches the socket may take note of it, so after
a request was sent the socket is asked whether there are answers already.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from itertools import count

import zmq
from zmq.utils.monitor import recv_monitor_message

from stage_server.data.connection import Holder, Transfer, connect, fault
from stage_server.data.contexts import started
from stage_server.data.multipart import receive
from stage_server.data.pool import BufferPool
from wire.bundle import LIMITS, Bundle, Limits
from wire.control_codec import Buffer
from wire.errors import InputLost, Loss, WireError
from wire.security import CurveKeys
from wire.to_stage import InputRef
from wire.transfer import Answer, Fetch, Lookup, State, decode_answer
from wire.types import Handle

MAX_FETCHES = 256
"""Unfinished fetches of one consumer."""

MAX_FETCHES_PER_HOLDER = 8
"""Transfers under way on one connection; more wait their turn, so that chunks in its queue stay few."""

MAX_ASKED_AHEAD = 24
"""The same, of those for which a holder waits. If all of them come at once, each with its window, the holder's queue
just takes them."""

BURST = 4
"""Answers of one holder that are taken in a row; then others have their turn, and those who ask for something."""

MAX_IDLE_CONNECTIONS = 16
STALL_SECONDS = 10.0
"""Silence of a holder after which a transfer is given up."""

_CLOSE_SECONDS = 5.0
_READ, _EVENTS = int(zmq.POLLIN), int(zmq.EVENTS)
"""As plain numbers, see ``multipart``."""
_TAKES_NOTHING = "the connection takes no more requests"
"""It was lost a moment ago, most likely, and its monitor has not said so yet."""

log = logging.getLogger(__name__)

Allocate = Callable[[int], memoryview]
"""Bytes → a writable, contiguous buffer of exactly that size. Raises ``MemoryError`` where there is no room."""


class TooManyFetches(RuntimeError):
    """More than ``MAX_FETCHES`` are unfinished."""


class Consumer:
    """``fetch`` and ``close`` may be called from any thread."""

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
        self._lock = threading.RLock()
        """Of all that follows, sockets included."""
        self._unfinished: set[Future[Bundle]] = set()
        self._closed = False
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._context = started()
        self._poller = zmq.Poller()
        self._poller.register(self._woken.fileno(), zmq.POLLIN)
        self._holders: dict[tuple[str, str], Holder] = {}
        """In the order of their last use."""
        self._ready: dict[int, Callable[[], None]] = {self._woken.fileno(): self._clear}
        """By descriptor, what to do when it says that there is something."""
        self._unread: set[int] = set()
        """Descriptors that may say nothing any more though there is something."""
        self._waits_until = math.inf
        self._thread = threading.Thread(target=self._loop, name="data-consumer", daemon=True)
        self._thread.start()

    def fetch(self, ref: InputRef, deadline_seconds: float, wait_ms: int = 0) -> Future[Bundle]:
        """The bundle behind ``ref``, within ``deadline_seconds`` from now. Cancelling the future ends the transfer.

        ``wait_ms``: it may not be there yet, and its holder is to wait for it so long before it says that it is not.
        The future fails with ``InputLost`` and nothing else. Raises ``TooManyFetches``.
        """
        future: Future[Bundle] = Future()
        bundle = self._local(ref.handle)
        if bundle is not None:
            future.set_result(bundle)
            return future
        fetch = Fetch(ref.handle, next(self._numbers), limits=self._limits, wait_ms=wait_ms)
        transfer = Transfer(ref, fetch, future, time.monotonic() + deadline_seconds)
        with self._lock:
            self._admit(future)
            # Weakly: a future that refers to itself keeps its bundle's buffer until the garbage collector comes, and
            # every transfer meanwhile has to map fresh memory.
            future.add_done_callback(partial(self._finished, weakref.ref(transfer)))
            self._begin(transfer)
            if transfer.limit < self._waits_until or self._unread:
                self._rouse()
        return future

    def holds(self, handle: Handle) -> bool:
        """Whether it is an output of this very process."""
        return self._local(handle) is not None

    def close(self) -> None:
        """End all transfers; their futures are cancelled. Closing twice is harmless."""
        with self._lock:
            self._closed = True
        self._rouse()
        self._thread.join(_CLOSE_SECONDS)

    # Under the lock.

    def _admit(self, future: Future[Bundle]) -> None:
        if self._closed:
            raise RuntimeError("the consumer is closed")
        if len(self._unfinished) >= MAX_FETCHES:
            raise TooManyFetches(f"{MAX_FETCHES} fetches are unfinished")
        self._unfinished.add(future)

    def _begin(self, transfer: Transfer) -> None:
        try:
            holder = self._connected(transfer.ref)
        except InputLost as lost:
            _fail(transfer, lost)
            return
        holder.waiting.append(transfer)
        self._start_waiting(holder)

    def _start_waiting(self, holder: Holder) -> None:
        while (transfer := holder.due(MAX_FETCHES_PER_HOLDER, MAX_ASKED_AHEAD)) is not None:
            holder.waiting.remove(transfer)
            holder.active[transfer.fetch.transfer] = transfer
            transfer.silent_until = time.monotonic() + self._stall_seconds
            try:
                holder.send([transfer.fetch.request()])
            except zmq.Again:
                self._lose(holder, Loss.UNREACHABLE, _TAKES_NOTHING)
                return
            self._ask(holder.dealer)

    def _end(self, transfer: Transfer) -> None:
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

    def _receive(self, holder: Holder) -> bool:
        """Take one answer; whether there was one."""
        try:
            frames = [frame.buffer for frame in receive(holder.dealer)]
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

    def _advance(self, holder: Holder, transfer: Transfer, answer: Answer, body: Buffer) -> None:
        fetch = transfer.fetch
        transfer.silent_until = time.monotonic() + self._stall_seconds
        try:
            holder.send(fetch.feed(answer, body))
            if fetch.state is State.OFFERED:
                holder.send(fetch.accept(self._allocate(fetch.nbytes)))
        except zmq.Again:
            self._lose(holder, Loss.UNREACHABLE, _TAKES_NOTHING)
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

    def _connected(self, ref: InputRef) -> Holder:
        key = (ref.endpoint, ref.public_key)
        holder = self._holders.pop(key, None) or self._connect(ref)
        self._holders[key] = holder
        self._close_idle()
        return holder

    def _ask(self, source: zmq.Socket[bytes]) -> None:
        """Whether there is something to read; if not, its descriptor will say so when there is."""
        if int(source.getsockopt(_EVENTS)) & _READ:
            self._unread.add(int(source.getsockopt(zmq.FD)))

    def _connect(self, ref: InputRef) -> Holder:
        holder = connect(self._context, ref, self._keys)
        for source, handler in ((holder.dealer, self._receive_some), (holder.monitor, self._check_lost)):
            descriptor = int(source.getsockopt(zmq.FD))
            self._poller.register(descriptor, zmq.POLLIN)
            self._ready[descriptor] = partial(handler, holder)
            self._ask(source)
        self._rouse()
        return holder

    def _lose(self, holder: Holder, reason: Loss, detail: str) -> None:
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

    def _drop(self, holder: Holder) -> None:
        self._holders = {key: other for key, other in self._holders.items() if other is not holder}
        for source in (holder.dealer, holder.monitor):
            descriptor = int(source.getsockopt(zmq.FD))
            del self._ready[descriptor]
            self._unread.discard(descriptor)
            self._poller.unregister(descriptor)
        holder.close()
        self._rouse()

    # From any thread.

    def _finished(self, known: weakref.ref[Transfer], future: Future[Bundle]) -> None:
        with self._lock:
            self._unfinished.discard(future)
            transfer = known()
            if future.cancelled() and transfer is not None and not self._closed:
                self._end(transfer)
                if self._unread:
                    self._rouse()
        if future.cancelled():
            future.set_running_or_notify_cancel()  # wakes those who wait for it

    def _rouse(self) -> None:
        with suppress(BlockingIOError, OSError):  # full: it is awake anyway; closed: nobody listens any more
            self._wake.send(b"\0")

    # The consumer's thread.

    def _loop(self) -> None:
        try:
            while not self._closed:
                ready = {descriptor for descriptor, _ in self._poller.poll(self._wait_ms())}
                with self._lock:
                    ready |= self._unread
                    self._unread.clear()
                for descriptor in ready:
                    self._ready.get(descriptor, _nothing)()  # an earlier one may have closed the socket
                with self._lock:
                    self._expire()
        finally:
            self._shut()

    def _wait_ms(self) -> int:
        """Also without transfers no longer than a holder's silence may be: nobody then has to wake it for a new one."""
        with self._lock:
            if self._unread:
                return 0
            now = time.monotonic()
            limits = [transfer.limit for holder in self._holders.values() for transfer in holder.transfers()]
            self._waits_until = min([*limits, now + self._stall_seconds])
            return max(0, math.ceil((self._waits_until - now) * 1e3))

    def _clear(self) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(4096)

    def _receive_some(self, holder: Holder) -> None:
        """The lock is free between two answers, for those who ask."""
        for _ in range(BURST):
            with self._lock:
                if holder.dealer.closed or not self._receive(holder):
                    return
        with self._lock:
            if not holder.dealer.closed:
                self._ask(holder.dealer)

    def _check_lost(self, holder: Holder) -> None:
        with self._lock:
            try:
                event = recv_monitor_message(holder.monitor, zmq.NOBLOCK)
            except zmq.ZMQError:  # nothing, or closed meanwhile
                return
            while not holder.dealer.closed and self._receive(holder):  # what came before the loss still counts
                pass
            self._lose(holder, Loss.UNREACHABLE, fault(event["event"]))

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


def _fail(transfer: Transfer, lost: InputLost) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        transfer.future.set_exception(lost)


def _succeed(transfer: Transfer) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        transfer.future.set_result(transfer.fetch.bundle)
