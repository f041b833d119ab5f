"""Moving windows in this process's memory, as a storage of the library ``limits``.

The library's own memory storage sends its sweep through a thread for every key it holds: 47 to 64 µs of processor time
for one count and the question what is left, with one key or a hundred. This takes a tenth of that, counts ten pictures
as one entry, and reads a clock that tests can set.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from limits.aio.storage import MemoryStorage

SWEEP_SECONDS = 60.0


@dataclass(slots=True)
class _Window:
    seconds: float
    counted: deque[tuple[float, int]] = field(default_factory=deque)
    """When and how many, oldest first."""
    total: int = 0

    def add(self, now: float, amount: int) -> None:
        self.counted.append((now, amount))
        self.total += amount

    def forget(self, now: float) -> None:
        while self.counted and self.counted[0][0] <= now - self.seconds:
            self.total -= self.counted.popleft()[1]


class Windows(MemoryStorage):
    """For ``MovingWindowRateLimiter``. What the other strategies need is the library's."""

    STORAGE_SCHEME = []  # noqa: RUF012 # it is made here, never by url

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is in Unix seconds, as the library's times are."""
        super().__init__()
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._sweep_at = clock() + SWEEP_SECONDS

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        window = self._current(key, expiry)
        if window.total + amount > limit:
            return False
        window.add(self._clock(), amount)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:  # noqa: ARG002
        window = self._current(key, expiry)
        return (window.counted[0][0] if window.counted else self._clock()), window.total

    def record(self, key: str, expiry: int, amount: int) -> None:
        """Count what was granted elsewhere, whatever the limit."""
        self._current(key, expiry).add(self._clock(), amount)

    def free_at(self, key: str, limit: int, expiry: int, amount: int) -> float:
        """When ``amount`` (at most ``limit``) more will fit, if nothing else is counted until then."""
        window = self._current(key, expiry)
        over = window.total + amount - limit
        free = self._clock()
        for when, counted in window.counted:
            if over <= 0:
                break
            over -= counted
            free = when + expiry
        return free

    def __len__(self) -> int:
        return len(self._windows)

    def _current(self, key: str, expiry: int) -> _Window:
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep(now)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(expiry)
        window.forget(now)
        return window

    def _sweep(self, now: float) -> None:
        """Keys that were not used for a while leave nothing behind."""
        self._sweep_at = now + SWEEP_SECONDS
        for key, window in list(self._windows.items()):
            window.forget(now)
            if not window.counted:
                del self._windows[key]
