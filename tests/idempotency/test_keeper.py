"""Claims and kept answers on a real SQLite database, shared by the keepers of several gateways; time by hand."""

from __future__ import annotations

import asyncio
import logging

import pytest
from sqlalchemy import text

from gateway.database.answers import Answers
from gateway.database.database import Database
from gateway.idempotency.keeper import (
    INLINE_BYTES,
    LEASE_SECONDS,
    ORPHAN_SECONDS,
    POLL_SECONDS,
    PREFIX,
    RENEW_SECONDS,
)
from gateway.idempotency.once import LINGER_SECONDS, Once
from gateway.idempotency.run import Ended, Origin, OtherRequest, Run
from gateway.settings import Settings
from gateway.storage.objects import StoreError, in_memory
from tests.idempotency.conftest import EVENTS, JSON, Waiting, heard, sent, start

DAY = 86_400
LARGE = b"x" * (INLINE_BYTES + 1)


async def ask(keeper, body: bytes = b"made", *, digest: bytes = b"d", headers=JSON, error: str | None = None, **more):
    """One request with the key, which is answered with ``body`` if it has to be made. Returns run and body."""
    run = Run(digest, "req_1")
    for name, value in more.items():
        setattr(run, name, value)
    async with keeper.claimed(b"key", run) as has_to_work:
        if has_to_work:
            await sent(run, body, headers)
            run.error_code = error
    run.finish()
    head, told = await heard(run)
    return run, head, told


async def rows(database) -> int:
    async with database.session() as connection:
        return (await connection.execute(text("SELECT count(*) FROM answers"))).scalar_one()


@pytest.mark.parametrize("body", [b"small", LARGE])
async def test_the_very_bytes_and_the_headers_that_matter_come_again(keeper_of, objects, body):
    first, _, told = await ask(keeper_of("a"), body)
    assert (first.origin, told) == (Origin.NEW, body)
    again, head, told = await ask(keeper_of("b"), b"another")
    assert (again.origin, again.request_id, told) == (Origin.REPLAYED, "req_1", body)
    assert head.headers == [*JSON[:2], (b"content-length", str(len(body)).encode())]  # rate limits were of that moment
    assert len(await objects.list(PREFIX)) == (1 if body is LARGE else 0)


async def test_a_stream_comes_again_as_what_counts_of_it(keeper_of):
    frames = b"event: image_generation.completed\n"
    await ask(keeper_of("a"), frames, headers=EVENTS)
    run, head, told = await ask(keeper_of("b"))
    assert (head.headers, told, run.origin) == (EVENTS, frames, Origin.REPLAYED)


async def test_another_request_with_the_key(keeper_of):
    await ask(keeper_of("a"))
    with pytest.raises(OtherRequest):
        await ask(keeper_of("a"), digest=b"other")


async def test_after_a_day_the_key_is_a_new_one(keeper_of, clock):
    await ask(keeper_of("a"), b"first")
    clock.advance(DAY - 1)
    assert (await ask(keeper_of("a")))[2] == b"first"
    clock.advance(1)
    assert (await ask(keeper_of("a"), b"second", digest=b"other"))[2] == b"second"


async def test_an_answer_of_short_use_is_kept_that_long(keeper_of, clock):
    await ask(keeper_of("a"), b"urls", lasts_seconds=3600.0)
    clock.advance(3600)
    assert (await ask(keeper_of("a"), b"new urls"))[2] == b"new urls"


@pytest.mark.parametrize(("error", "kept"), [("moderation_blocked", True), ("server_error", False), ("timeout", False)])
async def test_errors_that_may_pass_are_not_kept(keeper_of, error, kept):
    await ask(keeper_of("a"), b"first", error=error)
    run, _, told = await ask(keeper_of("a"), b"second")
    assert told == (b"first" if kept else b"second")
    assert run.error_code == (error if kept else None)


async def test_what_fails_leaves_the_key_free(keeper_of, database):
    async def fail() -> None:
        async with keeper_of("a").claimed(b"key", Run(b"d", "req_1")):
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await rows(database) == 0


class Elsewhere:
    """Another gateway that is at work on the key until it is told to answer, or is killed."""

    def __init__(self, keeper) -> None:
        self._go = asyncio.Event()
        self._has_begun = asyncio.Event()
        self.run = Run(b"d", "req_0")
        self.task = asyncio.create_task(self._work(keeper))

    async def _work(self, keeper) -> None:
        async with keeper.claimed(b"key", self.run) as has_to_work:
            assert has_to_work
            self._has_begun.set()
            await self._go.wait()
            await sent(self.run, b"made elsewhere")
        self.run.finish()

    async def begun(self) -> Elsewhere:
        await self._has_begun.wait()
        return self

    async def answer(self) -> None:
        self._go.set()
        await self.task


async def test_a_request_waits_for_the_gateway_that_makes_it(keeper_of, clock):
    elsewhere = await Elsewhere(keeper_of("a")).begun()
    asking = asyncio.create_task(ask(keeper_of("b")))
    for _ in range(3):
        await clock.until_sleeping(POLL_SECONDS)
        clock.advance(POLL_SECONDS)
    await clock.until_sleeping(POLL_SECONDS)
    await elsewhere.answer()
    clock.advance(POLL_SECONDS)
    run, _, told = await asking
    assert (run.origin, run.request_id, told) == (Origin.REPLAYED, "req_0", b"made elsewhere")


async def test_another_request_does_not_wait_for_it(keeper_of):
    elsewhere = await Elsewhere(keeper_of("a")).begun()
    with pytest.raises(OtherRequest):
        await ask(keeper_of("b"), digest=b"other")
    await elsewhere.answer()


async def test_a_claim_is_renewed_for_as_long_as_the_work_takes(keeper_of, clock):
    elsewhere = await Elsewhere(keeper_of("a")).begun()
    asking = asyncio.create_task(ask(keeper_of("b")))
    while clock.time < 1_764_000_000 + 3 * LEASE_SECONDS:
        await clock.until_sleeping(POLL_SECONDS, RENEW_SECONDS)
        clock.advance(RENEW_SECONDS)
    await clock.until_sleeping(POLL_SECONDS)
    await elsewhere.answer()
    clock.advance(POLL_SECONDS)
    assert (await asking)[2] == b"made elsewhere"


async def test_the_claim_of_a_gateway_that_died_is_taken_over_and_its_word_no_longer_counts(keeper_of, clock, caplog):
    frozen = keeper_of("a")
    frozen._hold = lambda _: None  # it renews nothing any more
    elsewhere = await Elsewhere(frozen).begun()
    asking = asyncio.create_task(ask(keeper_of("b"), b"made again"))
    await clock.until_sleeping(POLL_SECONDS)
    clock.advance(LEASE_SECONDS)
    assert (await asking)[2] == b"made again"
    await elsewhere.answer()  # it was only frozen: its own client gets its answer, nobody else does
    assert (await heard(elsewhere.run))[1] == b"made elsewhere"
    assert elsewhere.run.origin is Origin.NOT_KEPT
    assert "its lease ran out" in caplog.text
    assert (await ask(keeper_of("c")))[2] == b"made again"


async def test_work_goes_on_while_another_gateways_client_waits(keeper_of, clock):
    async def work(run: Run) -> None:
        await asyncio.Event().wait()

    once = Once(keeper_of("a"), clock)
    run = start(once, work, b"key")
    client = Waiting(run)
    await clock.until_sleeping(RENEW_SECONDS)  # it has the claim
    await client.leave()
    await clock.until_sleeping(LINGER_SECONDS)
    other = asyncio.create_task(ask(keeper_of("b")))
    await clock.until_sleeping(POLL_SECONDS)
    for _ in range(int(2 * LINGER_SECONDS / RENEW_SECONDS)):
        clock.advance(RENEW_SECONDS)
        await clock.until_sleeping(POLL_SECONDS, RENEW_SECONDS)
    assert once.join(b"key", b"d") is run
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    clock.advance(LINGER_SECONDS)
    with pytest.raises(Ended):
        async for _ in run.listen():
            pass
    assert (await ask(keeper_of("b"), b"anew"))[2] == b"anew"
    await once.close()


async def test_an_answer_whose_object_is_gone_is_made_again_and_said(keeper_of, caplog):
    await ask(keeper_of("a"), LARGE)
    run, _, told = await ask(keeper_of("b", store=in_memory()), b"made again")
    assert (told, run.origin) == (b"made again", Origin.NEW)
    assert "gateways on one database need one DISAGFUSION_FILE_STORE" in caplog.text


class Broken:
    """A store on a full disk."""

    async def put(self, *_: object) -> None:
        raise StoreError("cannot store: No space left on device")

    get = list = put


async def test_a_store_that_fails_costs_the_guarantee_and_not_the_picture(keeper_of, caplog, database):
    run, _, told = await ask(keeper_of("a", store=Broken()), LARGE)
    assert (told, run.origin) == (LARGE, Origin.NOT_KEPT)
    assert "req_1: the answer to its Idempotency-Key is not kept: cannot store: No space left" in caplog.text
    assert await rows(database) == 0
    assert (await ask(keeper_of("a", store=Broken())))[0].origin is Origin.NEW  # small ones need no store


async def test_an_answer_that_cannot_be_read_is_not_made_twice(keeper_of):
    await ask(keeper_of("a"), LARGE)
    with pytest.raises(StoreError):
        await ask(keeper_of("b", store=Broken()))


@pytest.fixture
async def nowhere(tmp_path):
    """A database that was never reached."""
    database = Database(Settings(state_dir=tmp_path / "nowhere"))
    yield Answers(database, "a")
    await database.close()


async def test_without_the_database_requests_are_answered_and_it_is_said(keeper_of, nowhere, caplog):
    caplog.set_level(logging.DEBUG, logger="gateway.idempotency")
    keeper = keeper_of("a")
    keeper._answers = nowhere
    run, _, told = await ask(keeper)
    assert (run.origin, told) == (Origin.UNAVAILABLE, b"made")
    assert "req_1: nobody knows whether its Idempotency-Key was used before: the database" in caplog.text
    assert await keeper.waited_for_elsewhere(b"key") == 0
    await keeper.sweep()


async def test_a_database_that_goes_on_the_way_costs_the_guarantee_and_not_the_picture(keeper_of, nowhere, caplog):
    keeper = keeper_of("a")
    run = Run(b"d", "req_1")
    async with keeper.claimed(b"key", run) as has_to_work:
        assert has_to_work
        keeper._answers = nowhere
        await sent(run, b"made")
    run.finish()
    assert ((await heard(run))[1], run.origin) == (b"made", Origin.NOT_KEPT)
    assert "req_1: the answer to its Idempotency-Key is not kept: the database" in caplog.text


async def test_what_has_expired_is_swept_with_its_objects(keeper_of, objects, database, clock):
    await ask(keeper_of("a"), LARGE)
    clock.advance(DAY)
    await keeper_of("a").sweep()
    assert await rows(database) == 0
    assert await objects.list(PREFIX) == []


async def test_the_oldest_make_room(keeper_of, objects, database, clock, caplog):
    keeper = keeper_of("a", max_bytes=2 * len(LARGE))
    for key in (b"1", b"2", b"3"):
        run = Run(b"d", "req")
        async with keeper.claimed(key, run):
            await sent(run, LARGE)
        clock.advance(1)
    await keeper.sweep()
    assert await rows(database) == len(await objects.list(PREFIX)) == 2
    async with keeper.claimed(b"3", Run(b"d", "req")) as has_to_work:
        assert not has_to_work
    assert "1 answers are forgotten before their time: IDEMPOTENCY_MAX_BYTES" in caplog.text


async def test_what_killed_gateways_left_is_swept_after_an_hour(keeper_of, objects, database, clock):
    await objects.put(f"{PREFIX}/orphan", b"x")
    (orphan,) = await objects.list(PREFIX)
    clock.time = orphan.modified
    await ask(keeper_of("a"), LARGE)
    left = keeper_of("killed")
    left._hold = lambda _: None
    await left._answers.claim(b"other", b"d", "req", clock.now(), clock.now() + LEASE_SECONDS)
    keeper = keeper_of("b")
    await keeper.sweep()
    assert len(await objects.list(PREFIX)) == 2
    clock.advance(ORPHAN_SECONDS + LEASE_SECONDS + 1)
    await keeper.sweep()
    assert len(await objects.list(PREFIX)) == 1
    assert await rows(database) == 1
