"""Everything that limits a key, in the order in which a request meets it. A key without a limit of its own has the
default.

On arrival: the budget, then requests per minute. Once it is known to be valid: requests at a time, then pictures per
minute. So what is refused as invalid is no picture, and what is refused for its pictures is a request all the same.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import NamedTuple

from gateway.accounts.caller import Limits
from gateway.limits.budgets import Budgets
from gateway.limits.leases import Lease, Leases
from gateway.limits.rates import Rates
from gateway.limits.refusals import Standing
from gateway.limits.shared import Shared

REQUESTS, PICTURES = "requests", "pictures"


class Left(NamedTuple):
    """Of one limit."""

    limit: float
    remaining: float
    reset_seconds: float
    """Until there is more; 0 where nothing is used, or nobody knows."""


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

    def limits_of(self, own: Limits) -> Limits:
        """What holds for a key whose own limits these are. The other methods are told it."""
        return _combined(own, self._defaults)

    async def enter(self, key: str, limits: Limits, budget: str) -> Standing | None:
        """A request arrives. ``budget`` is the key whose use counts; None is returned where no rate is limited.

        Raises ``BudgetUsedUp`` or ``LimitReached``.
        """
        await self.check_budget(limits, budget)
        limit = limits.requests_per_minute
        return None if limit is None else await self._rates.count(REQUESTS, key, limit)

    async def check_budget(self, limits: Limits, budget: str) -> None:
        """Raises ``BudgetUsedUp``."""
        limit = limits.device_seconds_per_month
        if self._budgets is not None and limit is not None:
            await self._budgets.check(budget, limit)

    async def left(self, key: str, limits: Limits, budget: str) -> dict[str, Left]:
        """How much is left of each limit that holds, by its name in ``Limits``; nothing is counted. Requests at a time
        are those of this gateway."""
        told: dict[str, Left] = {}
        if limits.requests_per_minute is not None:
            told["requests_per_minute"] = Left(*await self._rates.standing(REQUESTS, key, limits.requests_per_minute))
        if limits.images_per_minute is not None:
            told["images_per_minute"] = Left(*await self._rates.standing(PICTURES, key, limits.images_per_minute))
        if (most := limits.concurrent_requests) is not None:
            told["concurrent_requests"] = Left(most, max(0, most - self._leases.under_way(key)), 0.0)
        if self._budgets is not None and (budgeted := limits.device_seconds_per_month) is not None:
            left = max(0.0, budgeted - await self._budgets.used(budget))
            told["device_seconds_per_month"] = Left(budgeted, left, self._budgets.reset_seconds())
        return told

    async def count_pictures(self, key: str, limits: Limits, pictures: int) -> Standing | None:
        """Raises ``LimitReached``."""
        limit = limits.images_per_minute
        return None if limit is None else await self._rates.count(PICTURES, key, limit, pictures)

    async def take(self, key: str, limits: Limits) -> Lease | None:
        """For one of so many requests at a time, to be given back; None where they are not limited.

        Raises ``LimitReached``.
        """
        limit = limits.concurrent_requests
        return None if limit is None else await self._leases.take(key, limit)

    async def give_back(self, lease: Lease) -> None:
        await self._leases.give_back(lease)


@lru_cache(maxsize=4096)
def _combined(own: Limits, defaults: Limits) -> Limits:
    return Limits(**(asdict(defaults) | {name: value for name, value in asdict(own).items() if value is not None}))
