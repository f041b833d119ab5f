"""The runner with a real database and a fake of what jobs are about."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from gateway.database.batches import Batches, BatchRecord, BatchStatus
from gateway.database.errors import DatabaseError, Trouble
from gateway.database.job_queue import JobQueue
from gateway.database.jobs import Jobs, JobStatus
from gateway.jobs import runner as running
from gateway.jobs.endings import Endings
from gateway.jobs.owner import Owner
from gateway.jobs.runner import Places, Runner
from gateway.jobs.work import Failure, Fate, Made, Postponed
from gateway.service.interfaces import Admitted, Progress
from gateway.storage.job_pictures import ORPHAN_SECONDS, JobPictures
from gateway.storage.objects import StoreError, in_memory
from gateway.storage.space import Space

PATIENCE = 120.0


class Work:
    """Does jobs at once, or what the test tells it to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.fates: dict[str, Fate] = {}
        self.error: Exception | None = None
        self.hang = False
        self.cancelled = asyncio.Event()
        self._news = asyncio.Event()

    async def reached(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.begun) < count:
                self._news.clear()
                await self._news.wait()

    async def __call__(self, record, listener, fate) -> Made:
        self.fates[record.id] = fate
        self.begun.append(record.id)
        self._news.set()
        try:
            listener(Admitted(5.0))
            listener(Progress(0, 2, 8))
            if self.hang:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        return Made([b"a picture"], "png", b"{}", 9)


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def jobs(database):
    return Jobs(database)


@pytest.fixture
def objects():
    return in_memory()


@pytest.fixture
def pictures(objects, clock):
    return JobPictures(objects, Space(1 << 30), clock)


@pytest.fixture
def gateway(database, jobs, pictures, work, clock, monkeypatch):
    """Runs a gateway's runner as long as the block lasts."""
    monkeypatch.setattr(running, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(running, "RETRY_SECONDS", 0.01)

    @asynccontextmanager
    async def run(places: Places = Places(4, 4)):  # noqa: B008 # immutable
        owner = Owner(None)
        endings = Endings(60, b'"late"', clock)
        made = Runner(jobs, JobQueue(database, owner.name, 30.0), owner, pictures, work, places, endings, clock)
        task = asyncio.create_task(made.run())
        yield made
        assert not task.done(), task
        task.cancel()
        await asyncio.wait([task])

    return run


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 # the database tells of no events
            await asyncio.sleep(0.005)


async def ended(jobs, job_id: str):
    async def is_over() -> bool:
        found = await jobs.get("alice", job_id)
        return found.ended_at is not None

    await until(is_over)
    return await jobs.get("alice", job_id)


async def test_a_job_is_done_and_its_inputs_are_dropped(jobs, job, pictures, objects, gateway):
    await pictures.put_inputs("job_1", {"image": b"sent"})
    await jobs.add([job("job_1", inputs="image")])
    async with gateway():
        done = await ended(jobs, "job_1")
    assert (done.status, done.nbytes, done.expires_at) == (JobStatus.COMPLETED, 9, done.ended_at + 60)
    assert done.outputs == f"job_{done.token}_0.png"
    assert await pictures.output(done.outputs) == b"a picture"
    assert await pictures.inputs("job_1", ["image"]) == {}


async def test_what_goes_wrong_is_written_down(jobs, job, work, gateway):
    work.error = Failure(b'"no"')
    await jobs.add([job("job_1", webhook_url="https://example.org")])
    async with gateway():
        done = await ended(jobs, "job_1")
    assert (done.status, done.error, done.outputs) == (JobStatus.FAILED, b'"no"', "")


async def test_a_job_that_cannot_be_run_now_is_run_later(jobs, job, work, clock, gateway):
    work.error = Postponed("full", 5.0, 90.0)
    await jobs.add([job("job_1")])

    async def is_put_back() -> bool:
        return (await jobs.get("alice", "job_1")).predicted_at == clock.now + 90

    async with gateway() as runner:
        await until(is_put_back)
        work.error = None
        clock.now += 5
        runner.wake()
        assert (await ended(jobs, "job_1")).status is JobStatus.COMPLETED
    assert work.begun == ["job_1"] * 2


async def test_a_job_that_somebody_cancels_elsewhere_is_stopped(jobs, job, work, clock, gateway):
    work.hang = True
    await jobs.add([job("job_1")])
    async with gateway() as runner:

        async def is_known() -> bool:
            return (await jobs.get("alice", "job_1")).status is JobStatus.IN_PROGRESS

        await until(is_known)
        live = runner.live.latest(await jobs.get("alice", "job_1"))
        assert (live.step, live.steps, live.predicted_at) == (2, 8, clock.now + 5)
        assert await jobs.finish("job_1", Endings(60, b"", clock).make(job("job_1"), JobStatus.CANCELLED))
        async with asyncio.timeout(PATIENCE):
            await work.cancelled.wait()
        assert work.fates["job_1"].job_is_over


async def test_a_gateway_that_ends_gives_its_jobs_back(jobs, job, work, gateway):
    work.hang = True
    await jobs.add([job("job_1")])
    async with gateway():
        await work.reached(1)
    assert work.cancelled.is_set()
    assert not work.fates["job_1"].job_is_over
    work.hang = False
    async with gateway():
        assert (await ended(jobs, "job_1")).attempt == 2
    assert work.begun == ["job_1"] * 2


@pytest.mark.parametrize("kind", ["store", "database"])
async def test_what_was_made_is_kept_until_it_can_be_stored(jobs, job, pictures, work, gateway, monkeypatch, kind):
    tries = Counter()
    target, name = (pictures, "put_outputs") if kind == "store" else (jobs, "finish")
    real = getattr(target, name)

    async def failing(*arguments, **more):
        tries[name] += 1
        if tries[name] < 3:
            raise StoreError("full") if kind == "store" else DatabaseError(Trouble.LOST, "")
        return await real(*arguments, **more)

    monkeypatch.setattr(target, name, failing)
    await jobs.add([job("job_1")])
    async with gateway():
        assert (await ended(jobs, "job_1")).status is JobStatus.COMPLETED
    assert tries[name] == 3
    assert work.begun == ["job_1"], "done once"


async def test_a_job_that_was_taken_by_a_commit_that_seemed_to_fail_is_run(jobs, job, work, gateway, monkeypatch):
    real, tries = JobQueue.take, Counter()

    async def take(*arguments):
        taken = await real(*arguments)
        tries["take"] += 1
        if tries["take"] == 1:
            raise DatabaseError(Trouble.LOST, "at the commit")
        return taken

    monkeypatch.setattr(JobQueue, "take", take)
    await jobs.add([job("job_1")])
    async with gateway():
        assert (await ended(jobs, "job_1")).attempt == 2


async def test_what_an_attempt_made_that_was_overtaken_is_dropped(jobs, job, database, objects, work, clock, gateway):
    work.hang = True
    await jobs.add([job("job_1")])
    async with gateway():
        await work.reached(1)
        await jobs.delete(["job_1"])
        async with asyncio.timeout(PATIENCE):
            await work.cancelled.wait()
    assert await objects.list("jobs") == []


async def test_a_job_past_its_deadline_is_expired(jobs, job, clock, gateway):
    await jobs.add([job("job_1", deadline_at=clock.now - 1)])
    async with gateway():
        done = await ended(jobs, "job_1")
    assert (done.status, done.error) == (JobStatus.EXPIRED, b'"late"')


async def test_no_more_at_once_than_there_are_places(jobs, job, work, clock, database, gateway, monkeypatch):
    status = BatchStatus.IN_PROGRESS
    batch = BatchRecord("x", "alice", "", "", b"", b"", clock.now, clock.now + 60, status=status)
    await Batches(database, "a", 30.0).add(batch)
    rounds = asyncio.Semaphore(0)
    look = JobQueue.overdue

    async def count_rounds(*arguments):
        rounds.release()
        return await look(*arguments)

    monkeypatch.setattr(JobQueue, "overdue", count_rounds)
    work.hang = True
    await jobs.add([job(tenant=tenant) for tenant in "aaaab"] + [job(batch_id="x", line=n) for n in range(3)])
    async with gateway(Places(2, 1)):
        await work.reached(3)
        for _ in range(4):  # begun before that, perhaps, and three more
            await rounds.acquire()
        assert len(work.begun) == 3


async def test_pictures_of_no_job_are_swept(jobs, job, pictures, objects, database, clock):
    await jobs.add([job("job_1"), replace(job("job_2"), ended_at=clock.now, token="ab" * 16)])
    for name in ("job_1", "job_2", "job_3"):
        await pictures.put_inputs(name, {"image": b"x"})
    for token in ("ab" * 16, "cd" * 16):
        await pictures.put_outputs(token, [b"y"], "png")

    async def known(ids, tokens):
        return await jobs.known(unfinished=ids, tokens=tokens)

    clock.now = max(each.modified for each in await objects.list("jobs"))
    await pictures.sweep(known)
    assert len(await objects.list("jobs")) == 5, "perhaps of a job that is just being accepted"
    clock.now += ORPHAN_SECONDS + 1
    await pictures.sweep(known)
    kept = sorted(each.key for each in await objects.list("jobs"))
    assert kept == ["jobs/in/job_1.image", f"jobs/out/job_{'ab' * 16}_0.png"]


async def test_a_gateway_may_end_at_any_moment(jobs, job, gateway, database):
    """A transaction that is cancelled half-way would keep the only connection that writes."""
    await jobs.add([job() for _ in range(4)])
    for moment in range(12):
        async with asyncio.timeout(5), gateway():
            for _ in range(moment * 30):
                await asyncio.sleep(0)
    await jobs.add([job()])
