"""Requests at a time, of one gateway."""

from __future__ import annotations

import asyncio

import pytest

from gateway.limits.leases import Leases
from gateway.limits.refusals import LimitReached
from tests.limits.holding import hold


async def test_a_lease_is_given_back_on_every_way_out():
    leases = Leases()

    async def work(how: str, entered: asyncio.Event) -> None:
        async with hold(leases, "a", 1):
            entered.set()
            if how == "error":
                raise ValueError
            if how == "cancel":
                await asyncio.Event().wait()

    for how in ("end", "error", "cancel", "end"):
        entered = asyncio.Event()
        task = asyncio.create_task(work(how, entered))
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert leases.under_way("a") == 0, how


async def test_one_more_than_allowed_is_refused_and_takes_nothing():
    leases = Leases()
    async with hold(leases, "a", 2), hold(leases, "a", 2), hold(leases, "b", 2):
        with pytest.raises(LimitReached, match="2 requests are under way") as told:
            async with hold(leases, "a", 2):
                raise AssertionError
        assert told.value.retry_seconds == 5
        assert leases.under_way("a") == 2
    async with hold(leases, "a", 2):
        pass
