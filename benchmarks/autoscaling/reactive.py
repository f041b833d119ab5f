"""What Kubernetes does: the Horizontal Pod Autoscaler on utilisation, and KEDA, which feeds it a queue length.

Both as documented: a sync period of 15 s, a tolerance of 10 %, at most max(4, twofold) more per period, servers that
are not ready yet counted as idle before more are started, and the highest recommendation of a stabilisation window
before any is stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Protocol

SYNC_SECONDS = 15.0
TOLERANCE = 0.1
METRIC_SECONDS = 30.0
"""Over which a utilisation is averaged."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Of the pool, at one moment."""

    now: float
    ready: int
    starting: int
    busy: float
    """Servers that compute."""
    waiting: int
    """Requests that no server works on."""
    unfinished: int
    """And those that one does."""


class Rule(Protocol):
    """Asked every five seconds."""

    def wanted(self, seen: Seen) -> int: ...


class Stabilised:
    """The part that both have in common: when a recommendation becomes an order."""

    def __init__(self, window: float):
        self._window = window
        self._recommended: deque[tuple[float, int]] = deque()
        self._synced_at = -SYNC_SECONDS

    def is_due(self, now: float) -> bool:
        if now - self._synced_at < SYNC_SECONDS:
            return False
        self._synced_at = now
        return True

    def settled(self, recommended: int, current: int, now: float) -> int:
        self._recommended.append((now, recommended))
        while self._recommended[0][0] < now - self._window:
            self._recommended.popleft()
        highest = max(count for _, count in self._recommended)
        if recommended > current:
            return min(recommended, max(2 * current, current + 4))
        return min(current, highest)


class Utilisation:
    """HPA with a target of the mean utilisation."""

    def __init__(self, target: float, window: float):
        self._target = target
        self._order = Stabilised(window)
        self._busy: deque[tuple[float, float]] = deque()

    def wanted(self, seen: Seen) -> int:
        self._busy.append((seen.now, seen.busy / max(1, seen.ready)))
        while self._busy[0][0] <= seen.now - METRIC_SECONDS:
            self._busy.popleft()
        current = seen.ready + seen.starting
        if not self._order.is_due(seen.now):
            return current
        return self._order.settled(self._recommended(seen), current, seen.now)

    def _recommended(self, seen: Seen) -> int:
        current = seen.ready + seen.starting
        used = sum(share for _, share in self._busy) / len(self._busy)
        ratio = used / self._target
        if ratio > 1 and seen.starting:
            ratio = max(1.0, ratio * seen.ready / current)
            return current if ratio <= 1 + TOLERANCE else ceil(ratio * current)
        return current if abs(ratio - 1) <= TOLERANCE else ceil(ratio * seen.ready)


class QueueLength:
    """KEDA with so many requests per server."""

    def __init__(self, per_server: float, window: float, counted: Callable[[Seen], int]):
        self._per_server = per_server
        self._counted = counted
        self._order = Stabilised(window)

    def wanted(self, seen: Seen) -> int:
        current = seen.ready + seen.starting
        if not self._order.is_due(seen.now):
            return current
        ratio = self._counted(seen) / (self._per_server * max(1, current))
        recommended = current if abs(ratio - 1) <= TOLERANCE else ceil(self._counted(seen) / self._per_server)
        return self._order.settled(recommended, current, seen.now)


def waiting(seen: Seen) -> int:
    return seen.waiting


def unfinished(seen: Seen) -> int:
    return seen.unfinished


TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
WINDOWS = (60.0, 300.0)
QUEUES = (("unfinished", unfinished, (0.75, 1.0, 1.25, 1.5, 2.0)), ("waiting", waiting, (0.25, 0.5, 1.0)))


def _utilisations() -> dict[str, Callable[[], Rule]]:
    return {
        f"{target:.0%}, window {window:.0f} s": lambda t=target, w=window: Utilisation(t, w)  # type: ignore[misc]
        for target in TARGETS
        for window in WINDOWS
    }


def _queues() -> dict[str, Callable[[], Rule]]:
    return {
        f"{per_server:g} {name} per server, window {window:.0f} s": lambda p=per_server, w=window, c=counted: (  # type: ignore[misc]
            QueueLength(p, w, c)
        )
        for name, counted, some in QUEUES
        for per_server in some
        for window in WINDOWS
    }


GRID: Mapping[str, Mapping[str, Callable[[], Rule]]] = {"HPA": _utilisations(), "KEDA": _queues()}
"""Contender → what it is called → a new one."""
