"""Requests at a time: each holds a lease while it is worked on, and gives it back on every way out."""

from __future__ import annotations

from typing import NamedTuple

from gateway.limits.refusals import LimitReached
from gateway.limits.shared import Shared

RETRY_SECONDS = 5.0
"""Nobody knows when one of the caller's requests will be over; pictures take seconds."""


class Lease(NamedTuple):
    key: str
    shared: str = ""
    """Its name in Redis."""


class Leases:
    def __init__(self, shared: Shared | None = None) -> None:
        self._shared = shared
        self._held: dict[str, int] = {}
        """Of this gateway."""

    async def take(self, key: str, limit: int) -> Lease:
        """One of ``limit``, to be given back. Raises ``LimitReached``."""
        held = self._held.get(key, 0)
        if held >= limit:
            raise _reached(limit)
        self._held[key] = held + 1
        if self._shared is None:
            return Lease(key)
        shared = ""
        try:
            shared = await self._shared.acquire(key, limit)
        finally:
            if not shared:
                self._forget(key)
        if not shared:
            raise _reached(limit)
        return Lease(key, shared)

    async def give_back(self, lease: Lease) -> None:
        """Is done, whatever becomes of whoever waits for it."""
        self._forget(lease.key)
        if self._shared is not None:
            await self._shared.release(lease.key, lease.shared)

    def _forget(self, key: str) -> None:
        left = self._held.pop(key) - 1
        if left:
            self._held[key] = left

    def under_way(self, key: str) -> int:
        """On this gateway."""
        return self._held.get(key, 0)


def _reached(limit: int) -> LimitReached:
    have = "1 request is" if limit == 1 else f"{limit} requests are"
    return LimitReached(f"Rate limit reached: {have} under way, as many as you may have at a time.", RETRY_SECONDS)
