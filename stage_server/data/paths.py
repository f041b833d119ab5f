"""Finds the way to holders that may be behind relays, and fetches by it."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from stage_server.data.consumer import Consumer
from stage_server.data.prober import try_peer
from wire.bundle import Bundle
from wire.dial import DIAL_SECONDS, dial
from wire.doors import Doors
from wire.errors import InputLost, Loss
from wire.paths import Paths, addresses, holder_of
from wire.security import CurveKeys
from wire.to_stage import InputRef, TryPeer

FINDERS = 8
"""Ways looked for at once; further ones wait."""

LOST_ON_THE_WAY = frozenset({Loss.UNREACHABLE, Loss.STALLED})


class Pathfinder:
    """May be used from any thread."""

    def __init__(self, keys: CurveKeys | None, doors: Doors, seconds: float = DIAL_SECONDS) -> None:
        """``seconds``: in which each address has to answer."""
        self.doors = doors
        self._keys = keys
        self._seconds = seconds
        self._paths = Paths()
        self._lock = threading.Lock()

    def known(self, ref: InputRef) -> str:
        with self._lock:
            return self._paths.known(ref.server)

    def forget(self, ref: InputRef, endpoint: str) -> None:
        """``endpoint`` does not lead there any more."""
        with self._lock:
            if self._paths.known(ref.server) == endpoint:
                self._paths.forget(ref.server)

    def find(self, peer: TryPeer) -> str:
        """Each address and what happened there; empty where one of them leads to ``peer``. Takes seconds."""
        faults = []
        for each in addresses(peer):
            fault = self._try(each)
            if not fault:
                with self._lock:
                    self._paths.note(peer.server, each.endpoint)
                return ""
            faults.append(fault)
        with self._lock:
            self._paths.forget(peer.server)
        return "; ".join(faults)

    def _try(self, peer: TryPeer) -> str:
        door = self.doors.to(peer.endpoint)
        if door == peer.endpoint:
            return try_peer(peer, self._keys, self._seconds)
        if fault := dial(peer.endpoint, self._seconds):  # of the relay, which says more than a closed door
            return f"{peer.endpoint}: {fault}"
        fault = try_peer(msgspec.structs.replace(peer, endpoint=door), self._keys, self._seconds)
        return fault.replace(door, peer.endpoint)


class PathConsumer(Consumer):
    """A consumer that finds out by which address a holder is reached, before the first fetch and when one was lost."""

    def __init__(self, pathfinder: Pathfinder, **options: Any) -> None:
        """``options``: those of ``Consumer``."""
        self._pathfinder = pathfinder
        self._finders = ThreadPoolExecutor(FINDERS, "pathfinder")
        super().__init__(**options)

    def fetch(self, ref: InputRef, deadline_seconds: float, wait_ms: int = 0) -> Future[Bundle]:
        if not ref.relays or self.holds(ref.handle):
            return super().fetch(ref, deadline_seconds, wait_ms)
        future: Future[Bundle] = Future()
        trip = _Trip(ref, future, monotonic() + deadline_seconds, wait_ms)
        future.add_done_callback(_wake_if_cancelled)
        if known := self._pathfinder.known(ref):
            self._go(trip, known)
        else:
            self._find(trip)
        return future

    def close(self) -> None:
        self._finders.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _find(self, trip: _Trip) -> None:
        try:
            finding = self._finders.submit(self._find_and_go, trip)
        except RuntimeError:  # closed
            trip.future.cancel()
            return
        finding.add_done_callback(lambda done: trip.future.cancel() if done.cancelled() else None)

    def _find_and_go(self, trip: _Trip) -> None:
        if trip.future.cancelled():
            return
        known = self._pathfinder.known(trip.ref)  # by another fetch, meanwhile
        fault = "" if known else self._pathfinder.find(holder_of(trip.ref))
        known = known or self._pathfinder.known(trip.ref)
        if known:
            self._go(trip, known)
        else:
            trip.fail(InputLost(trip.ref.handle, Loss.UNREACHABLE, fault))

    def _go(self, trip: _Trip, endpoint: str) -> None:
        ref = msgspec.structs.replace(trip.ref, endpoint=self._pathfinder.doors.to(endpoint), relays=())
        try:
            fetch = super().fetch(ref, trip.limit - monotonic(), trip.wait_ms)
        except RuntimeError as error:  # closed, or too many
            trip.fail(error)
            return
        # Weakly, as in the consumer: nothing may keep the bundle's buffer that does not need it.
        trip.future.add_done_callback(partial(_cancel_with, weakref.ref(fetch)))
        fetch.add_done_callback(partial(self._arrived, trip, endpoint))

    def _arrived(self, trip: _Trip, endpoint: str, fetch: Future[Bundle]) -> None:
        try:
            bundle = fetch.result()
        except CancelledError:
            trip.future.cancel()
        except InputLost as error:
            if error.reason in LOST_ON_THE_WAY:
                self._pathfinder.forget(trip.ref, endpoint)
            if error.reason in LOST_ON_THE_WAY and not trip.is_second:
                trip.is_second = True
                self._find(trip)
            else:
                trip.fail(error)
        else:
            with suppress(InvalidStateError):  # cancelled meanwhile
                trip.future.set_result(bundle)


@dataclass(slots=True, eq=False)
class _Trip:
    """A fetch that has yet to find its way."""

    ref: InputRef
    future: Future[Bundle]
    limit: float
    wait_ms: int = 0
    is_second: bool = False
    """One way has failed already."""

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):  # cancelled meanwhile
            self.future.set_exception(error)


def _wake_if_cancelled(future: Future[Bundle]) -> None:
    if future.cancelled():
        future.set_running_or_notify_cancel()  # wakes those who wait for it


def _cancel_with(fetch: weakref.ref[Future[Bundle]], future: Future[Bundle]) -> None:
    under_way = fetch()
    if future.cancelled() and under_way is not None:
        under_way.cancel()
