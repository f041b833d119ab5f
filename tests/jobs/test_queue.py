"""Owners, leases and attempts, as several gateways see them."""

from __future__ import annotations

import pytest

from gateway.database.batches import Batches, BatchRecord, BatchStatus
from gateway.database.deliveries import Deliveries, Places
from gateway.database.job_queue import Advance, Attempt, JobQueue, Lane
from gateway.database.jobs import Ending, Jobs, JobStatus
from gateway.jobs.endings import event_of
from gateway.jobs.turns import allot

LEASE = 30.0
ALICE = Lane("alice")


@pytest.fixture
def jobs(database):
    return Jobs(database)


@pytest.fixture
def queue(database):
    return JobQueue(database, "a", LEASE)


@pytest.fixture
def other(database):
    """Of another gateway."""
    return JobQueue(database, "b", LEASE)


def ending(clock, status: JobStatus = JobStatus.COMPLETED, **more: object) -> Ending:
    return Ending(status, clock.now, clock.now + 60, **more)


def ids(records) -> list[str]:
    return [record.id for record in records]


async def test_the_urgent_first_then_the_old(jobs, queue, job, clock):
    await jobs.add([job("old"), job("young"), job("urgent", priority=1), job("bob's", tenant="bob")])
    assert await queue.waiting(clock.now) == {ALICE: 3, Lane("bob"): 1}
    assert ids(await queue.take(ALICE, 2, clock.now)) == ["urgent", "old"]
    assert ids(await queue.take(ALICE, 9, clock.now)) == ["young"]
    assert await queue.waiting(clock.now) == {Lane("bob"): 1}


async def test_a_job_has_one_owner_until_its_lease_is_over(jobs, queue, other, job, clock):
    await jobs.add([job("one")])
    (first,) = await queue.take(ALICE, 1, clock.now)
    assert (first.attempt, len(first.token)) == (1, 32)
    clock.now += LEASE
    await queue.renew(clock.now)
    clock.now += LEASE
    assert await other.take(ALICE, 1, clock.now) == []
    clock.now += 1
    (second,) = await other.take(ALICE, 1, clock.now)
    assert second.attempt == 2
    assert second.token != first.token
    assert await queue.mine() == set()
    assert await other.mine() == {Attempt("one", 2)}


async def test_a_lease_that_nobody_took_is_renewed_though_it_is_over(jobs, queue, other, job, clock):
    await jobs.add([job("one")])
    await queue.take(ALICE, 1, clock.now)
    clock.now += 3 * LEASE
    await queue.renew(clock.now)
    assert await other.take(ALICE, 1, clock.now) == []


async def test_only_the_latest_attempt_ends_a_job_and_only_once(jobs, queue, other, job, clock):
    await jobs.add([job("one")])
    await queue.take(ALICE, 1, clock.now)
    clock.now += LEASE + 1
    await other.take(ALICE, 1, clock.now)
    assert not await jobs.finish("one", ending(clock, answer=b"first"), 1)
    assert await jobs.finish("one", ending(clock, answer=b"second", outputs="a,b", nbytes=5), 2)
    assert not await jobs.finish("one", ending(clock, answer=b"again"), 2)
    assert not await jobs.finish("one", ending(clock, JobStatus.CANCELLED))
    found = await jobs.get("alice", "one")
    assert (found.status, found.answer, found.outputs) == (JobStatus.COMPLETED, b"second", "a,b")
    assert await jobs.held_bytes() == {"alice": 5}


async def test_what_is_put_back_waits_and_starts_anew(jobs, queue, job, clock):
    await jobs.add([job("one")])
    await queue.take(ALICE, 1, clock.now)
    attempt = Attempt("one", 1)
    await queue.advance([Advance(attempt, 3, 8, clock.now + 9)], clock.now)
    found = await jobs.get("alice", "one")
    assert (found.status, found.step, found.steps) == (JobStatus.IN_PROGRESS, 3, 8)
    assert (found.in_progress_at, found.predicted_at) == (clock.now, clock.now + 9)
    await queue.put_back(attempt, clock.now + 5, clock.now + 100)
    found = await jobs.get("alice", "one")
    assert (found.status, found.step, found.in_progress_at) == (JobStatus.QUEUED, 0, None)
    assert found.predicted_at == clock.now + 100
    assert await queue.take(ALICE, 1, clock.now) == []
    clock.now += 5
    assert ids(await queue.take(ALICE, 1, clock.now)) == ["one"]


async def test_news_of_an_attempt_that_was_overtaken_counts_for_nothing(jobs, queue, other, job, clock):
    await jobs.add([job("one")])
    await queue.take(ALICE, 1, clock.now)
    clock.now += LEASE + 1
    await other.take(ALICE, 1, clock.now)
    await queue.advance([Advance(Attempt("one", 1), 3, 8, None)], clock.now)
    await queue.put_back(Attempt("one", 1), clock.now)
    assert (await jobs.get("alice", "one")).step == 0
    assert await other.mine() == {Attempt("one", 2)}


async def test_jobs_of_a_gateway_that_is_known_to_be_dead_are_free_at_once(jobs, queue, other, job, clock):
    await jobs.add([job("one"), job("two")])
    await queue.take(ALICE, 2, clock.now)
    assert await other.abandon("a") == 2
    assert ids(await other.take(ALICE, 9, clock.now)) == ["one", "two"]


async def test_past_its_deadline_a_job_is_not_run(jobs, queue, job, clock):
    await jobs.add([job("late", deadline_at=clock.now + 5), job("owned", deadline_at=clock.now + 5, priority=1)])
    await queue.take(ALICE, 1, clock.now)
    clock.now += 6
    assert await queue.take(ALICE, 1, clock.now) == []
    assert ids(await queue.overdue(clock.now, 9)) == ["late"], "the other one's owner sees to it"
    clock.now += LEASE
    assert sorted(ids(await queue.overdue(clock.now, 9))) == ["late", "owned"]


async def test_a_line_of_a_batch_is_no_job_to_callers(jobs, queue, job, clock, database):
    batches = Batches(database, "a", LEASE)
    for name, status in (("x", BatchStatus.IN_PROGRESS), ("y", BatchStatus.VALIDATING), ("z", BatchStatus.IN_PROGRESS)):
        await batches.add(BatchRecord(name, "alice", "", "", b"", b"", clock.now, clock.now + 60, status=status))
    await jobs.add([job("b2", batch_id="x", line=2), job("b1", batch_id="x", line=1), job("one")])
    await jobs.add([job("b3", batch_id="y", line=1)])
    lane = Lane("alice", "x")
    assert await queue.waiting_batches(clock.now) == [lane]
    assert await queue.waiting(clock.now) == {ALICE: 1}
    assert ids(await queue.take(ALICE, 9, clock.now)) == ["one"]
    assert ids(await queue.take(lane, 9, clock.now)) == ["b1", "b2"]
    assert await jobs.get("alice", "b1") is None
    assert ids((await jobs.page("alice", limit=9, after=None, oldest_first=True)).records) == ["one"]


async def test_deleting_a_job_deletes_what_its_webhook_was_still_to_be_told(jobs, queue, job, clock, database):
    await jobs.add([job("one")])
    event = event_of("one", "image.job.completed", "https://example.org", clock.now)
    assert await jobs.finish("one", ending(clock, event=event))
    await jobs.delete(["one"])
    assert await jobs.over(clock.now + 1e6, 9) == []
    assert await Deliveries(database).take(clock.now, 60, Places(9, 9, {})) == []


@pytest.mark.parametrize(
    ("waiting", "running", "places", "given"),
    [
        ({"a": 5, "b": 5}, {}, 4, {"a": 2, "b": 2}),
        ({"a": 5, "b": 1}, {}, 4, {"a": 3, "b": 1}),
        ({"a": 5, "b": 5}, {"a": 3}, 4, {"a": 1, "b": 3}),
        ({"a": 1}, {}, 4, {"a": 1}),
        ({}, {"a": 1}, 4, {}),
        ({"a": 3}, {}, 0, {}),
        ({"a": 50_000, "b": 1}, {"a": 63}, 1, {"b": 1}),
    ],
)
def test_tenants_share_the_places(waiting, running, places, given):
    lanes = {Lane(tenant): count for tenant, count in waiting.items()}
    assert allot(lanes, running, places) == {Lane(tenant): count for tenant, count in given.items()}


def test_the_batches_of_a_tenant_go_one_after_the_other():
    first, second = Lane("a", "one"), Lane("a", "two")
    assert allot({first: 3, second: 3}, {}, 4) == {first: 3, second: 1}
