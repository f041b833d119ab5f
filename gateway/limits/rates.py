"""Requests and pictures per minute: how many more, and when.

A window moves: no sixty seconds see more than the limit. The library's sliding counters would be cheaper in Redis, but
take the former minute as evenly spread: a caller whose requests came at its end gets up to twice the limit within sixty
seconds. The price is an entry per picture in Redis, as many as the limit at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from gateway.limits.refusals import LimitReached, Standing
from gateway.limits.shared import Shared, Unavailable
from gateway.limits.windows import Window, Windows


class Rates:
    """With ``shared``, what several gateways grant counts together.

    What this gateway granted is in its own memory, too. When Redis goes, limits go on from there and do not begin
    anew; when it comes back empty, nobody gets more from one gateway than the limit.
    """

    def __init__(self, shared: Shared | None = None, clock: Callable[[], float] = time.time) -> None:
        self._shared = shared
        self._clock = clock
        self._own = Windows(60.0, clock)

    async def count(self, what: str, key: str, limit: int, cost: int = 1) -> Standing:
        """``what`` is "requests" or "pictures", also for the caller to read. Raises ``LimitReached``; then nothing is
        counted."""
        name = f"{what}/{key}"
        if cost > limit:
            raise LimitReached(
                f"This request is for {cost} {what}, and your limit is {limit} per minute: ask for less.",
                retry_seconds=None,
                standing=self._own_standing(name, limit),
            )
        if self._shared is not None and self._shared.up:
            try:
                return await self._count_shared(self._shared, what, name, limit, cost)
            except Unavailable:
                pass  # counted here alone until it is back
        now = self._clock()
        window = self._own.current(name, now)
        if window.total + cost > limit:
            raise self._refusal(what, cost, self._own.free_at(name, limit, cost), self._standing(window, limit, now))
        window.add(now, cost)
        return self._standing(window, limit, now)

    async def standing(self, what: str, key: str, limit: int) -> Standing:
        """How much is left, without counting anything."""
        name = f"{what}/{key}"
        own = self._own_standing(name, limit)
        if self._shared is not None and self._shared.up:
            with suppress(Unavailable):
                moves_at, remaining = await self._shared.stats(name, limit)
                if remaining < own.remaining:
                    return Standing(limit, max(0, remaining), max(0.0, moves_at - self._clock()))
        return own

    async def _count_shared(self, shared: Shared, what: str, name: str, limit: int, cost: int) -> Standing:
        granted = self._own.fits(name, limit, cost) and await shared.hit(name, limit, cost)
        if granted:
            self._own.count(name, cost)
        moves_at, remaining = await shared.stats(name, limit)
        own = self._own_standing(name, limit)
        if remaining < own.remaining:
            own = Standing(limit, max(0, remaining), max(0.0, moves_at - self._clock()))
        if not granted:
            free_at = max(self._own.free_at(name, limit, cost), await shared.free_at(name, limit, cost))
            raise self._refusal(what, cost, free_at, own)
        return own

    def _refusal(self, what: str, cost: int, free_at: float, standing: Standing) -> LimitReached:
        seconds = max(0.0, free_at - self._clock())
        asked = f" This request is for {cost}." if cost > 1 else ""
        return LimitReached(
            f"Rate limit reached: {standing.limit} {what} per minute.{asked} Try again in {seconds:.0f} s.",
            seconds,
            standing,
        )

    def _own_standing(self, name: str, limit: int) -> Standing:
        """As far as this gateway knows."""
        now = self._clock()
        return self._standing(self._own.current(name, now), limit, now)

    def _standing(self, window: Window, limit: int, now: float) -> Standing:
        left = limit - window.total
        return Standing(limit, max(0, left), window.counted[0][0] + self._own.seconds - now if window.counted else 0.0)
