"""Moving windows: what was granted counts for a minute, and for no longer."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from gateway.limits.rates import Rates
from gateway.limits.refusals import LimitReached, Standing
from gateway.limits.windows import Windows


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_grants_are_those_of_the_library(clock, monkeypatch):
    """Which holds them in Redis, where gateways share them; here its memory storage, on the same clock."""
    monkeypatch.setattr("limits.aio.storage.memory.time", SimpleNamespace(time=clock))
    theirs, item = MovingWindowRateLimiter(MemoryStorage()), RateLimitItemPerMinute(20)
    ours, chance = Windows(60, clock), Random(1)
    granted = []
    for _ in range(2000):
        clock.now += chance.choice((0, 0.1, 1, 2, 5, 30))
        key, cost = chance.choice("ab"), chance.choice((1, 1, 2, 7, 20))
        granted.append(ours.fits(key, 20, cost))
        if granted[-1]:
            ours.count(key, cost)
        assert await theirs.hit(item, key, cost=cost) == granted[-1]
    assert 500 < sum(granted) < 1500


async def test_no_minute_sees_more_than_the_limit(clock):
    """Not even the minute around the turn of two, where fixed windows let twice the limit through."""
    rates, granted = Rates(clock=clock), []
    clock.now += 55
    for _ in range(400):
        clock.now += 0.25
        try:
            await rates.count("requests", "a", 10)
            granted.append(clock.now)
        except LimitReached:
            pass
    assert len(granted) == 20
    assert max(sum(begin <= other < begin + 60 for other in granted) for begin in granted) == 10


async def test_standing_tells_what_is_left_and_when_more_is(clock):
    rates = Rates(clock=clock)
    assert await rates.count("pictures", "a", 10, 4) == Standing(10, 6, 60.0)
    clock.now += 15
    assert await rates.count("pictures", "a", 10, 3) == Standing(10, 3, 45.0)
    with pytest.raises(LimitReached, match="10 pictures per minute") as told:
        await rates.count("pictures", "a", 10, 4)
    assert str(told.value).endswith("This request is for 4. Try again in 45 s.")
    assert told.value.standing == Standing(10, 3, 45.0), "a refused request is not counted"
    assert told.value.retry_seconds == 45.0
    with pytest.raises(LimitReached) as told:
        await rates.count("pictures", "a", 10, 8)
    assert told.value.retry_seconds == 60.0, "the first four pictures are not enough"
    clock.now += 61
    assert await rates.count("pictures", "a", 10, 10) == Standing(10, 0, 60.0)


async def test_more_than_the_whole_limit_is_never_possible(clock):
    with pytest.raises(LimitReached, match="for 5 pictures, and your limit is 4 per minute: ask for less") as told:
        await Rates(clock=clock).count("pictures", "a", 4, 5)
    assert told.value.retry_seconds is None
    assert told.value.standing == Standing(4, 4, 0.0)


async def test_requests_and_pictures_of_a_key_are_counted_apart(clock):
    rates = Rates(clock=clock)
    await rates.count("requests", "a", 1)
    assert (await rates.count("pictures", "a", 1)).remaining == 0


async def test_keys_that_went_quiet_leave_nothing_behind(clock):
    windows = Windows(60, clock)
    for index in range(1000):
        windows.count(f"key {index}", 1)
    clock.now += 61
    windows.count("another", 1)
    assert len(windows) == 1


@pytest.mark.parametrize("back", [1.0, 3600.0, 1e6])
async def test_a_clock_that_is_set_back_makes_nobody_wait_longer_than_a_window(clock, back):
    rates = Rates(clock=clock)
    await rates.count("requests", "a", 2)
    clock.now += 30
    await rates.count("requests", "a", 2)
    clock.now -= back
    with pytest.raises(LimitReached) as told:
        await rates.count("requests", "a", 2)
    assert told.value.retry_seconds <= 60.0
    assert told.value.standing.reset_seconds <= 60.0
    clock.now += 60.1
    assert (await rates.count("requests", "a", 2)).remaining >= 0


async def test_keys_are_swept_though_the_clock_was_set_back(clock):
    windows = Windows(60, clock)
    windows.count("quiet", 1)
    clock.now -= 1e6
    windows.count("another", 1)
    clock.now += 61
    windows.count("another", 1)
    assert len(windows) == 1
