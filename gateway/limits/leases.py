"""Requests at a time: each holds a lease while it is worked on, and gives it back on every way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.limits.refusals import LimitReached
from gateway.limits.shared import Shared

RETRY_SECONDS = 5.0
"""Nobody knows when one of the caller's requests will be over; pictures take seconds."""


class Leases:
    def __init__(self, shared: Shared | None = None) -> None:
        self._shared = shared
        self._held: Counter[str] = Counter()
        """Of this gateway."""

    @asynccontextmanager
    async def hold(self, key: str, limit: int) -> AsyncIterator[None]:
        """One of ``limit``. Raises ``LimitReached``."""
        if self._held[key] >= limit:
            raise _reached(limit)
        self._held[key] += 1
        lease = ""
        try:
            if self._shared is not None:
                lease = await self._shared.acquire(key, limit)
                if not lease:
                    raise _reached(limit)
            yield
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
            if lease and self._shared is not None:
                await self._shared.release(key, lease)

    def under_way(self, key: str) -> int:
        """On this gateway."""
        return self._held[key]


def _reached(limit: int) -> LimitReached:
    have = "1 request is" if limit == 1 else f"{limit} requests are"
    return LimitReached(f"Rate limit reached: {have} under way, as many as you may have at a time.", RETRY_SECONDS)
