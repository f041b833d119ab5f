"""Device-seconds per calendar month (UTC), in the database, so that they hold over gateways and restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Set
from datetime import UTC, date, datetime
from typing import Protocol

from gateway.database.errors import DatabaseError
from gateway.database.usage import month_of
from gateway.limits.refusals import BudgetUsedUp

FRESH_SECONDS = 5.0
"""For so long what other gateways wrote may be unknown here; what this one used is known at once."""


class Ledger(Protocol):
    async def spent(self, keys: Collection[str], month: int) -> Mapping[str, float]:
        """Device-seconds of those that have spent any. Raises ``DatabaseError``."""


class Unwritten(Protocol):
    def unwritten(self, key: str, month: int) -> float:
        """Device-seconds that the ledger may not know of yet."""

    @property
    def writes(self) -> int:
        """How many writes to the ledger have begun or ended: odd while there is one."""


class Budgets:
    """A request begins while anything is left, and is worked on to its end: what is under way may go beyond.

    The database is asked for all keys at once, and only for a key that was not seen for long does a request wait.
    """

    def __init__(self, ledger: Ledger, meter: Unwritten, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._meter = meter
        self._clock = clock
        self._month = 0
        self._known: dict[str, float] = {}
        self._wanted: set[str] = set()
        """Keys checked since all were looked up; the others are forgotten then."""
        self._fresh_until = 0.0
        self._is_unsure = False
        """What was being written at the last look may be in what was found, or not: to be looked up again after it."""
        self._looking = asyncio.Lock()

    async def check(self, key: str, limit: float) -> None:
        """Raises ``BudgetUsedUp``."""
        now = self._clock()
        month = month_of(now)
        known = self._at_hand(key, month, now)
        used = await self._looked_up(key, month) if known is None else known
        if used >= limit:
            raise BudgetUsedUp(
                f"You have used up your budget: {used:.1f} of {limit:g} device-seconds in "
                f"{date(month // 12, month % 12 + 1, 1):%B %Y}. It begins anew with the next month (UTC)."
            )

    async def used(self, key: str) -> float:
        """Device-seconds of this month. Without the database, what was last known, and what was used here since."""
        now = self._clock()
        month = month_of(now)
        known = self._at_hand(key, month, now)
        return await self._looked_up(key, month) if known is None else known

    def _at_hand(self, key: str, month: int, now: float) -> float | None:
        """As nearly always: nothing is waited for."""
        self._wanted.add(key)
        if key not in self._known or not self._is_fresh(month, now):
            return None
        return self._known[key] + self._meter.unwritten(key, month)

    async def _looked_up(self, key: str, month: int) -> float:
        async with self._looking:
            if not self._is_fresh(month, self._clock()):
                await self._look_anew(month)
            if key not in self._known:
                await self._look({key}, month)
        return self._known.get(key, 0.0) + self._meter.unwritten(key, month)

    def reset_seconds(self) -> float:
        """Until the next month begins (UTC)."""
        now = self._clock()
        following = month_of(now) + 1
        return max(0.0, datetime(following // 12, following % 12 + 1, 1, tzinfo=UTC).timestamp() - now)

    def written(self, charges: Mapping[tuple[str, int], float]) -> None:
        """The ledger has these device-seconds of (key, month) now."""
        for (key, month), seconds in charges.items():
            if month == self._month and key in self._known:
                self._known[key] += seconds

    def _is_fresh(self, month: int, now: float) -> bool:
        if self._is_unsure and self._meter.writes % 2 == 0:
            return False
        # From below as well: a clock that was set back would keep what is known fresh until it has caught up.
        return month == self._month and self._fresh_until - FRESH_SECONDS <= now < self._fresh_until

    async def _look_anew(self, month: int) -> None:
        keys, self._wanted = self._wanted, set()
        known = self._known if month == self._month else {}
        self._month, self._known = month, {key: known[key] for key in keys & known.keys()}
        self._fresh_until, self._is_unsure = self._clock() + FRESH_SECONDS, False
        await self._look(keys, month)

    async def _look(self, keys: Set[str], month: int) -> None:
        writes = self._meter.writes
        try:
            found = await self._ledger.spent(keys, month)
        except DatabaseError:
            found = self._known
        self._known |= {key: found.get(key, 0.0) for key in keys}
        if self._meter.writes != writes or writes % 2 == 1:
            self._is_unsure = True
