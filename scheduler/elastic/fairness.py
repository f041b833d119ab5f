"""Which tenant's turn it is: virtual counters of device-seconds, as in virtual-time fair queueing.

A job is charged when it is committed, by prediction as if it were alone, and set right when it is done. The tenant
whose counter is lowest goes first. One that comes back from idleness starts at the lowest counter among those at work:
time that nobody asked for can't be saved up.

A tenant of next to no share is behind all others as soon as it has got anything, and would drag along whoever started
at its counter: so nobody does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from scheduler.policy import Observer
from scheduler.spec import Timings
from scheduler.state import Attempt, Request
from scheduler.view import View

LEAST_SHARE = 1e-3
"""Tenants of less set no counter for others: they get what nobody else wants."""

MAX_IDLE = 256
"""Idle tenants whose counters are kept before those that say nothing are dropped."""


class Fairness(Observer):
    def __init__(self, shares: Mapping[str, float] | None = None):
        """``shares``: weights of tenants that are not 1."""
        self._shares = dict(shares or {})
        self._used: dict[str, float] = {}
        self._live: Counter[str] = Counter()
        self._floor = 0.0
        """Where the last tenant at work stood when it went idle."""

    def used(self, tenant: str) -> float:
        """Device-seconds over the tenant's share, on the common virtual clock."""
        return self._used.get(tenant, self._floor)

    def standing(self, tenant: str) -> float:
        """Its counter, or where it would start."""
        if tenant in self._live:
            return self._used[tenant]
        return max(self.used(tenant), self._lowest(self._floor))

    def share(self, tenant: str) -> float:
        return self._shares.get(tenant, 1.0)

    def next(self, tenants: Collection[str]) -> str:
        """Who of these goes first; there is at least one."""
        if len(tenants) == 1:
            return next(iter(tenants))
        # By name where counters are equal: runs must repeat.
        return min(tenants, key=lambda tenant: (self.used(tenant), tenant))

    def opened(self, request: Request, view: View, now: float) -> None:  # noqa: ARG002
        tenant = request.spec.tenant
        self._used[tenant] = self.standing(tenant)
        self._live[tenant] += 1

    def committed(self, attempt: Attempt, view: View, now: float) -> None:  # noqa: ARG002
        self._charge(attempt, attempt.predicted_seconds)

    def done(self, attempt: Attempt, timings: Timings, now: float) -> None:  # noqa: ARG002
        if timings.compute > 0:  # those that computed together share what that took
            company = max(1.0, min(timings.batch, attempt.most_company))
            self._charge(attempt, timings.compute / company - attempt.predicted_seconds)

    def handed_over(self, attempt: Attempt, timings: Timings, now: float) -> None:  # noqa: ARG002
        self._charge(attempt, timings.compute / max(1, timings.batch) - attempt.predicted_seconds)

    def over(self, request: Request, *, finished: bool) -> None:  # noqa: ARG002
        tenant = request.spec.tenant
        self._live[tenant] -= 1
        if not self._live[tenant]:
            del self._live[tenant]
            # It never falls, or whoever comes when nobody is at work would start with time saved up.
            last = self.used(tenant) if self.share(tenant) >= LEAST_SHARE else self._floor
            self._floor = max(self._floor, self._lowest(last))
            if len(self._used) > MAX_IDLE + len(self._live):
                self._used = {t: used for t, used in self._used.items() if t in self._live or used > self._floor}

    def _lowest(self, otherwise: float) -> float:
        """Of the counters of those at work."""
        counters = (self._used[other] for other in self._live if self.share(other) >= LEAST_SHARE)
        return min(counters, default=otherwise)

    def _charge(self, attempt: Attempt, seconds: float) -> None:
        tenant = attempt.job.request.spec.tenant
        self._used[tenant] = self.used(tenant) + seconds / self.share(tenant)
