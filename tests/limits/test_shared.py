"""Limits of two gateways on one real Redis, which is killed and comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from redis.asyncio import Redis as Client

from gateway.limits.leases import Leases
from gateway.limits.rates import Rates
from gateway.limits.refusals import LimitReached
from gateway.limits.shared import Shared
from tests.limits.holding import hold
from tests.needed import needs

pytestmark = [pytest.mark.services, needs("redis-server")]

LEASE_SECONDS = 0.3


@pytest.fixture
async def gateways(redis) -> AsyncIterator[tuple[Shared, Shared]]:
    pair = Shared(redis.url), Shared(redis.url)
    yield pair
    for shared in pair:
        await shared.close()


@pytest.fixture
async def client(redis) -> AsyncIterator[Client]:
    async with Client.from_url(redis.url) as client:
        yield client


async def granted(rates: Rates, cost: int = 1, limit: int = 100) -> int:
    try:
        await rates.count("pictures", "key", limit, cost)
    except LimitReached:
        return 0
    return cost


async def granted_at_once(both: tuple[Rates, Rates], requests: int = 150) -> int:
    return sum(await asyncio.gather(*(granted(rates, 1 + index % 3) for index in range(requests) for rates in both)))


async def test_two_gateways_grant_no_more_than_the_limit(gateways):
    both = Rates(gateways[0]), Rates(gateways[1])
    total = await granted_at_once(both)
    assert 98 <= total <= 100, "requests for up to three pictures fit in until none does"
    with pytest.raises(LimitReached) as told:
        await both[1].count("pictures", "key", 100, 100)
    assert told.value.standing.remaining == 100 - total
    assert 50 < told.value.retry_seconds <= 60


async def test_both_tell_what_is_left_of_the_whole(gateways):
    first, second = Rates(gateways[0]), Rates(gateways[1])
    assert (await first.count("requests", "key", 3)).remaining == 2
    assert (await second.count("requests", "key", 3)).remaining == 1
    standing = await first.count("requests", "key", 3)
    assert (standing.limit, standing.remaining) == (3, 0)
    assert 50 < standing.reset_seconds <= 60


async def test_requests_at_a_time_hold_over_both(gateways, client):
    first, second = Leases(gateways[0]), Leases(gateways[1])
    async with hold(first, "key", 2):
        async with hold(second, "key", 2):
            for leases in (first, second):
                with pytest.raises(LimitReached, match="2 requests are under way"):
                    async with hold(leases, "key", 2):
                        raise AssertionError
        async with hold(first, "key", 2):
            pass
    assert await client.exists("disagfusion:limits:leases:key") == 0, "every lease was given back"


async def test_a_caller_cancelled_while_it_asks_holds_nothing(gateways, client):
    await client.client_pause(150)  # ms, in which Redis answers nobody
    leases = Leases(gateways[0])

    async def work() -> None:
        async with hold(leases, "key", 1):
            raise AssertionError

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert leases.under_way("key") == 0
    await gateways[0].settle()
    async with hold(Leases(gateways[1]), "key", 1):
        pass


async def test_leases_of_a_gateway_that_died_expire_and_of_one_that_lives_do_not(redis):
    dead, alive = Shared(redis.url, LEASE_SECONDS), Shared(redis.url, LEASE_SECONDS)
    async with running(alive) as renewed:
        await dead.acquire("key", 2)
        async with hold(Leases(alive), "key", 2):
            with pytest.raises(LimitReached):
                async with hold(Leases(alive), "key", 2):
                    raise AssertionError
            until = asyncio.get_running_loop().time() + 1.5 * LEASE_SECONDS
            while asyncio.get_running_loop().time() < until:
                await renewed()
            assert await dead.acquire("key", 2), "the dead gateway's place is free"
            assert not await dead.acquire("key", 2), "the other's is taken"
    await dead.close()


async def test_redis_is_killed_and_comes_back(redis, gateways, caplog):
    caplog.set_level(logging.INFO)
    both = Rates(gateways[0]), Rates(gateways[1])
    before = [await granted(both[0], 1) for _ in range(60)]
    assert sum(before) == 60
    async with AsyncExitStack() as held:
        leases = Leases(gateways[0])
        await held.enter_async_context(hold(leases, "key", 2))
        redis.kill()
        assert [await granted(rates) for rates in both] == [1, 1], "requests go on"
        assert sum([await granted(both[0]) for _ in range(100)]) == 39, "from where this gateway was"
        await held.enter_async_context(hold(leases, "key", 2))
        with pytest.raises(LimitReached):
            await held.enter_async_context(hold(leases, "key", 2))
        warnings = [record.getMessage() for record in caplog.records if record.name == "gateway.limits.shared"]
        assert len(warnings) == 2, "one of each gateway"
        assert all(f"Redis at 127.0.0.1:{redis.port} does not answer" in text for text in warnings)

        await gateways[0].look()  # still away: nothing more is said
        redis.start()  # empty
        for shared in gateways:
            await shared.look()
        assert all(shared.up for shared in gateways)
        with pytest.raises(LimitReached):  # what began while Redis was away counts on the other gateway, too
            await held.enter_async_context(hold(Leases(gateways[1]), "key", 2))
        assert await granted(both[0]) == 0, "nor does an empty Redis grant this gateway its limit anew"
    lines = [record.getMessage() for record in caplog.records if record.name == "gateway.limits.shared"]
    assert [line.endswith("is back: limits hold over all gateways again") for line in lines] == [False] * 2 + [True] * 2


async def test_a_redis_that_refuses_writes_is_not_back(redis, client, gateways, caplog):
    (shared, _), rates = gateways, Rates(gateways[0])
    await client.config_set("maxmemory", "1")
    assert await granted(rates) == 1
    assert not shared.up
    await shared.look()
    assert not shared.up, "it answers, and cannot be used"
    await client.config_set("maxmemory", "0")
    await shared.look()
    assert shared.up
    assert "(command not allowed when used memory > 'maxmemory'" in caplog.text


async def test_a_redis_that_hangs_is_left_alone_after_a_second(gateways, client, caplog):
    await client.client_pause(1500)
    rates, began = Rates(gateways[0]), asyncio.get_running_loop().time()
    assert [await granted(rates) for _ in range(50)] == [1] * 50
    assert asyncio.get_running_loop().time() - began < 1.4, "one request waits, no other does"
    assert len([record for record in caplog.records if "does not answer" in record.getMessage()]) == 1


@asynccontextmanager
async def running(shared: Shared) -> AsyncIterator[Callable[[], object]]:
    """Renews when called, as ``Shared.run`` does in its own time."""
    yield shared.look
    await shared.close()
