"""Everything that limits a key, in the order in which a request meets it. A key without a limit of its own has the
default.

On arrival: the budget, then requests per minute. Once it is known to be valid: requests at a time, then pictures per
minute. So what is refused as invalid is no picture, and what is refused for its pictures is a request all the same.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache

from gateway.accounts.caller import Limits
from gateway.limits.budgets import Budgets
from gateway.limits.leases import Lease, Leases
from gateway.limits.rates import Rates
from gateway.limits.refusals import Standing
from gateway.limits.shared import Shared

REQUESTS, PICTURES = "requests", "pictures"


class Limiter:
    def __init__(
        self,
        defaults: Limits = Limits(),  # noqa: B008 # frozen
        *,
        shared: Shared | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        """Without ``shared`` limits hold on this gateway alone; without ``budgets`` nobody has one."""
        self._defaults = defaults
        self._rates = Rates(shared)
        self._leases = Leases(shared)
        self._budgets = budgets

    async def enter(self, key: str, own: Limits, budget: str) -> Standing | None:
        """A request arrives. ``budget`` is the key whose use counts; None is returned where no rate is limited.

        Raises ``BudgetUsedUp`` or ``LimitReached``.
        """
        await self.check_budget(own, budget)
        limit = _combined(own, self._defaults).requests_per_minute
        return None if limit is None else await self._rates.count(REQUESTS, key, limit)

    async def check_budget(self, own: Limits, budget: str) -> None:
        """Raises ``BudgetUsedUp``."""
        limit = _combined(own, self._defaults).device_seconds_per_month
        if self._budgets is not None and limit is not None:
            await self._budgets.check(budget, limit)

    async def count_pictures(self, key: str, own: Limits, pictures: int) -> Standing | None:
        """Raises ``LimitReached``."""
        limit = _combined(own, self._defaults).images_per_minute
        return None if limit is None else await self._rates.count(PICTURES, key, limit, pictures)

    async def take(self, key: str, own: Limits) -> Lease | None:
        """For one of so many requests at a time, to be given back; None where they are not limited.

        Raises ``LimitReached``.
        """
        limit = _combined(own, self._defaults).concurrent_requests
        return None if limit is None else await self._leases.take(key, limit)

    async def give_back(self, lease: Lease) -> None:
        await self._leases.give_back(lease)


@lru_cache(maxsize=4096)
def _combined(own: Limits, defaults: Limits) -> Limits:
    return Limits(**(asdict(defaults) | {name: value for name, value in asdict(own).items() if value is not None}))
