"""Runs of one process: who joins, and when a run that nobody waits for ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from gateway.idempotency.once import LINGER_SECONDS, Once
from gateway.idempotency.run import Ended, Origin, OtherRequest
from tests.idempotency.conftest import JSON, Waiting, heard, sent, settle, start


class Work:
    """Waits for the word, then answers."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.calls = 0
        self.cancelled = False

    async def __call__(self, run) -> None:
        self.calls += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await sent(run)


@pytest.fixture
async def once(clock):
    made = Once(clock=clock)
    yield made
    await made.close()


@pytest.fixture
def work() -> Work:
    return Work()


async def test_fifty_at_once_are_one(once, work):
    run = start(once, work)
    waiting = [asyncio.create_task(heard(once.join(b"k", b"d"))) for _ in range(50)]
    await settle()
    work.go.set()
    answers = await asyncio.gather(*waiting)
    assert work.calls == 1
    assert answers == [answers[0]] * 50
    assert run.origin is Origin.UNAVAILABLE  # with no keeper, nobody knows what was before
    assert once.join(b"k", b"d") is None


async def test_another_request_with_the_key_is_refused_and_another_key_is_free(once, work):
    start(once, work)
    with pytest.raises(OtherRequest):
        once.join(b"k", b"other")
    assert once.join(b"other", b"d") is None


async def test_what_fails_fails_for_all_and_leaves_the_key_free(once, caplog):
    async def work(_) -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    run = start(once, work)
    for waiting in [asyncio.create_task(heard(run)) for _ in range(2)]:
        with pytest.raises(KeyError):
            await waiting
    assert once.join(b"k", b"d") is None


async def test_a_client_that_comes_back_in_time_finds_its_work(once, work, clock):
    run = start(once, work)
    client = Waiting(run)
    await settle()
    await client.leave()
    await clock.until_sleeping(LINGER_SECONDS)
    clock.advance(LINGER_SECONDS - 1)
    await settle()
    back = Waiting(once.join(b"k", b"d"))
    await settle()
    assert clock.sleeping() == []
    clock.advance(1000)
    await settle()
    assert not work.cancelled
    work.go.set()
    head, body = await back.task
    assert (head.status, head.headers, body) == (200, JSON, b'{"a":1}')
    assert work.calls == 1


async def test_the_half_minute_begins_when_the_last_one_leaves(once, work, clock):
    clients = [Waiting(start(once, work))]
    clients.append(Waiting(once.join(b"k", b"d")))
    await settle()
    await clients[0].leave()
    clock.advance(1000)
    await settle()
    assert not work.cancelled
    await clients[1].leave()
    await clock.until_sleeping(LINGER_SECONDS)
    clock.advance(LINGER_SECONDS - 0.1)
    await settle()
    assert not work.cancelled
    clock.advance(0.1)
    await settle()
    assert work.cancelled
    assert once.join(b"k", b"d") is None


async def test_it_also_ends_when_its_client_left_before_it_began(once, work, clock):
    run = start(once, work)
    await clock.until_sleeping(LINGER_SECONDS)
    clock.advance(LINGER_SECONDS)
    await settle()
    assert work.cancelled
    with pytest.raises(Ended):
        await heard(run)


async def test_who_comes_while_it_is_being_ended_is_told_so_at_once(once, clock):
    may_end = asyncio.Event()

    async def work(_) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    run = start(once, work)
    await clock.until_sleeping(LINGER_SECONDS)
    clock.advance(LINGER_SECONDS)
    await settle()
    assert once.join(b"k", b"d") is run  # the key is not free while the work has not ended
    client = Waiting(run)
    may_end.set()
    with pytest.raises(Ended):
        await client.task
    assert once.join(b"k", b"d") is None


async def test_the_end_of_the_process_ends_every_run(once, work):
    clients = [Waiting(start(once, work, key)) for key in (b"1", b"2")]
    await settle()
    await once.close()
    for client in clients:
        with pytest.raises(Ended):
            await client.task
    assert work.cancelled


async def test_what_a_request_holds_is_closed_whatever_happens(once, clock):
    closed = []

    async def work(run) -> None:
        await sent(run)

    async def broken(_) -> None:
        raise KeyError

    for key, what in ((b"1", work), (b"2", broken)):
        held = AsyncExitStack()
        held.callback(closed.append, key)
        once.start(key, b"d", "req", what, held)
    await settle()
    assert closed == [b"1", b"2"]


async def test_no_task_is_left(clock, work):
    before = asyncio.all_tasks()
    once = Once(clock=clock)
    client = Waiting(start(once, work))
    await settle()
    work.go.set()
    await client.task
    await once.close()
    await settle()
    assert asyncio.all_tasks() == before
