"""Who waits for an encoding that another request makes, and what becomes of them."""

from __future__ import annotations

import asyncio

import pytest

from gateway.service import under_way
from gateway.service.under_way import UnderWay
from wire.types import RequestId

R, S, T = RequestId("r"), RequestId("s"), RequestId("t")
TURNS = 10
"""Of the event loop, in which everything happens that can."""


async def settled(*tasks: asyncio.Task[None]) -> list[bool]:
    for _ in range(TURNS):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def waiting(known: UnderWay, exact: bool = True) -> asyncio.Task[None]:
    return asyncio.create_task(known.wait(["key"], exact=exact))


async def test_nobody_waits_for_what_nobody_makes() -> None:
    known = UnderWay()
    known.begin(["other"], R, exact=True)
    await known.wait(["key"], exact=True)


async def test_all_who_wait_go_on_once_it_was_made() -> None:
    known = UnderWay()
    known.begin(["key"], R, exact=True)
    tasks = [waiting(known), waiting(known, exact=False)]
    assert await settled(*tasks) == [False, False]
    known.made("key", R)
    assert await settled(*tasks) == [True, True]
    await known.wait(["key"], exact=True)  # who comes now looks for it among what is kept


async def test_where_it_came_to_nothing_one_makes_it_and_the_others_wait_for_that() -> None:
    known = UnderWay()
    known.begin(["key"], R, exact=True)

    async def wait_and_make(request: RequestId) -> None:
        await known.wait(["key"], exact=True)
        known.begin(["key"], request, exact=True)

    first, second = asyncio.create_task(wait_and_make(S)), asyncio.create_task(wait_and_make(T))
    await settled()
    known.over(["key"], R)
    assert await settled(first, second) == [True, False]
    known.made("key", S)
    assert await settled(second) == [True]


async def test_only_its_maker_ends_the_wait() -> None:
    known = UnderWay()
    known.begin(["key"], R, exact=True)
    known.begin(["key"], S, exact=True)
    task = waiting(known)
    known.made("key", S)
    known.over(["key"], S)
    assert await settled(task) == [False]
    known.over(["key"], R)
    assert await settled(task) == [True]


async def test_who_must_be_exact_waits_for_nothing_that_may_be_computed_in_company() -> None:
    known = UnderWay()
    known.begin(["key"], R, exact=False)
    exact, fast = waiting(known), waiting(known, exact=False)
    assert await settled(exact, fast) == [True, False]
    fast.cancel()


async def test_one_that_stops_waiting_takes_nobody_along() -> None:
    known = UnderWay()
    known.begin(["key"], R, exact=True)
    first, second = waiting(known), waiting(known)
    await settled()
    first.cancel()
    assert await settled(first, second) == [True, False]
    known.made("key", R)
    assert await settled(second) == [True]


async def test_nobody_waits_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_way, "MOST_SECONDS", 0.0)
    known = UnderWay()
    known.begin(["key"], R, exact=True)
    await known.wait(["key"], exact=True)
