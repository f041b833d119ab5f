"""Device-seconds per calendar month (UTC), in the database, so that they hold over gateways and restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Protocol

from gateway.database.errors import DatabaseError
from gateway.database.usage import month_of
from gateway.limits.refusals import BudgetUsedUp

FRESH_SECONDS = 5.0
"""For so long what other gateways wrote may be unknown here; what this one wrote is known at once."""


class Spent(Protocol):
    async def spent(self, key: str, month: int) -> float:
        """Device-seconds. Raises ``DatabaseError``."""


@dataclass(slots=True)
class _Known:
    month: int
    seconds: float
    until: float


class Budgets:
    """A request begins while anything is left, and is worked on to its end: what is under way may go beyond."""

    def __init__(
        self,
        ledger: Spent,
        unwritten: Callable[[str, int], float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._unwritten = unwritten
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def check(self, key: str, limit: float) -> None:
        """Raises ``BudgetUsedUp``. Without the database, what was last known counts, and what was used here since."""
        now = self._clock()
        month = month_of(now)
        known = self._known.get(key)
        if known is None or known.month != month or now >= known.until:
            known = await self._read(key, month, now)
        used = known.seconds + self._unwritten(key, month)
        if used >= limit:
            raise BudgetUsedUp(
                f"You have used up your budget: {used:.1f} of {limit:g} device-seconds in "
                f"{date(month // 12, month % 12 + 1, 1):%B %Y}. It begins anew with the next month (UTC)."
            )

    def forget(self, keys: Iterable[str]) -> None:
        """Something was written: to be read again."""
        for key in keys:
            if key in self._known:
                self._known[key].until = 0.0

    async def _read(self, key: str, month: int, now: float) -> _Known:
        try:
            seconds = await self._ledger.spent(key, month)
        except DatabaseError:
            known = self._known.get(key)
            seconds = known.seconds if known is not None and known.month == month else 0.0
        self._known[key] = _Known(month, seconds, now + FRESH_SECONDS)
        return self._known[key]
