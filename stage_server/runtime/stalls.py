"""Notices that the whole process stood still, or the machine did: its timers are late then."""

from __future__ import annotations

from collections.abc import Callable

STALL_SECONDS = 1.0
"""A timer that is later than this has been held up."""


class Stalls:
    def __init__(self) -> None:
        self._told_until = 0.0
        """What stood still before has been told of."""
        self._not_late_until = 0.0
        """No timer can be that late before: most events need not ask for the next one."""

    def seconds(self, next_wakeup: Callable[[], float], now: float) -> float:
        """For how long it stood still until now, told once; 0 if it did not."""
        if now <= self._not_late_until:
            return 0.0
        due = max(next_wakeup(), self._told_until)
        self._not_late_until = min(due, now) + STALL_SECONDS
        late = now - due
        if late <= STALL_SECONDS:
            return 0.0
        self._told_until = now  # other events may come before the timer's
        return late
