"""A lease as a block, as ``gateway.api.limiting`` holds one around the work on a request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.limits.leases import Leases


@asynccontextmanager
async def hold(leases: Leases, key: str, limit: int) -> AsyncIterator[None]:
    lease = await leases.take(key, limit)
    try:
        yield
    finally:
        await leases.give_back(lease)
