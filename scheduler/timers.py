"""What is due when. Virtual: somebody else waits."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, auto
from heapq import heappop, heappush


class Alarm(IntEnum):
    DEADLINE = auto()
    LEAD = auto()
    """A server comes within reach of its next job."""
    ROLES = auto()
    REACH = auto()
    """A server that could not be reached is tried again, or a trial has not been answered."""


Name = tuple[Alarm, str]


class Timers:
    """One pending time per name; setting it again replaces it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Name]] = []
        self._due: dict[Name, tuple[float, int]] = {}
        self._next = 0

    def set(self, alarm: Alarm, subject: str, at: float) -> None:
        name = (alarm, subject)
        pending = self._due.get(name)
        if pending is not None and pending[0] == at:
            return
        self._next += 1
        self._due[name] = (at, self._next)
        heappush(self._heap, (at, self._next, name))

    def clear(self, alarm: Alarm, subject: str) -> None:
        self._due.pop((alarm, subject), None)

    def next_at(self) -> float | None:
        self._drop_void()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Iterator[tuple[Alarm, str]]:
        """Names whose time has come, in order."""
        while (at := self.next_at()) is not None and at <= now:
            name = heappop(self._heap)[2]
            del self._due[name]
            yield name

    def _drop_void(self) -> None:
        heap = self._heap
        while heap:
            _, number, name = heap[0]
            pending = self._due.get(name)
            if pending is not None and pending[1] == number:
                break
            heappop(heap)
