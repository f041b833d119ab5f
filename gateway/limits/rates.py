"""Requests and pictures per minute: how many more, and when.

A window moves: no sixty seconds see more than the limit. The library's sliding counters would be cheaper in Redis, but
take the former minute as evenly spread: a caller whose requests came at its end gets up to twice the limit within sixty
seconds. The price is an entry per picture in Redis, as many as the limit at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

from limits import RateLimitItemPerMinute
from limits.aio.strategies import MovingWindowRateLimiter

from gateway.limits.allowance import LimitReached, Standing
from gateway.limits.shared import Shared, Unavailable
from gateway.limits.windows import Windows


class Rates:
    """With ``shared``, what several gateways grant counts together.

    What this gateway granted is in its own memory, too. When Redis goes, limits go on from there and do not begin
    anew; when it comes back empty, nobody gets more from one gateway than the limit.
    """

    def __init__(self, shared: Shared | None = None, clock: Callable[[], float] = time.time) -> None:
        self._shared = shared
        self._clock = clock
        self._memory = Windows(clock)
        self._own = MovingWindowRateLimiter(self._memory)

    async def count(self, what: str, key: str, limit: int, cost: int = 1) -> Standing:
        """``what`` is "requests" or "pictures", also for the caller to read. Raises ``LimitReached``; then nothing is
        counted."""
        item = _per_minute(limit, what)
        if cost > limit:
            raise LimitReached(
                f"This request is for {cost} {what}, and your limit is {limit} per minute: ask for less.",
                retry_seconds=None,
                standing=await self._own_standing(item, key),
            )
        if self._shared is not None and self._shared.up:
            try:
                return await self._count_shared(self._shared, item, key, cost)
            except Unavailable:
                pass
        if not await self._own.hit(item, key, cost=cost):
            free_at = self._own_free_at(item, key, cost)
            raise self._refusal(item, cost, free_at, await self._own_standing(item, key))
        return await self._own_standing(item, key)

    async def _count_shared(self, shared: Shared, item: RateLimitItemPerMinute, key: str, cost: int) -> Standing:
        granted = await self._own.test(item, key, cost=cost) and await shared.hit(item, key, cost)
        if granted:
            self._memory.record(item.key_for(key), item.get_expiry(), cost)
        of_all, own = self._standing(item, *await shared.stats(item, key)), await self._own_standing(item, key)
        standing = min(of_all, own, key=lambda each: each.remaining)
        if not granted:
            free_at = max(self._own_free_at(item, key, cost), await shared.free_at(item, key, cost))
            raise self._refusal(item, cost, free_at, standing)
        return standing

    def _own_free_at(self, item: RateLimitItemPerMinute, key: str, cost: int) -> float:
        return self._memory.free_at(item.key_for(key), item.amount, item.get_expiry(), cost)

    def _refusal(self, item: RateLimitItemPerMinute, cost: int, free_at: float, standing: Standing) -> LimitReached:
        seconds = max(0.0, free_at - self._clock())
        asked = f" This request is for {cost}." if cost > 1 else ""
        return LimitReached(
            f"Rate limit reached: {item.amount} {item.namespace} per minute.{asked} Try again in {seconds:.0f} s.",
            seconds,
            standing,
        )

    async def _own_standing(self, item: RateLimitItemPerMinute, key: str) -> Standing:
        stats = await self._own.get_window_stats(item, key)
        return self._standing(item, stats.reset_time, stats.remaining)

    def _standing(self, item: RateLimitItemPerMinute, resets_at: float, remaining: int) -> Standing:
        remaining = max(0, remaining)
        reset = max(0.0, resets_at - self._clock()) if remaining < item.amount else 0.0
        return Standing(item.amount, remaining, reset)


@lru_cache(maxsize=1024)
def _per_minute(limit: int, what: str) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(limit, namespace=what)
