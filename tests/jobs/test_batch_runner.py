"""Batches as wholes: what a gateway's death interrupts is begun again, and nothing is there twice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gateway.database.batches import Batches, BatchRecord, BatchStatus
from gateway.database.jobs import Ending, Jobs, JobStatus
from gateway.jobs.batch_lines import Place
from gateway.jobs.batch_runner import BatchRules, BatchRunner
from gateway.jobs.owner import Owner
from gateway.settings import Settings
from gateway.storage.objects import StoreError
from gateway.storage.storage import Storage

URL = "/v1/images/generations"
LEASE = 30.0


class Killed(BaseException):
    """As sudden as a signal."""


class Outcome:
    lost = b'"lost"'

    def nbytes(self, line) -> int:
        return len(self.render(line, [b"?"] * line.outputs.count("png")))

    def render(self, line, pictures) -> bytes:
        told = {"id": line.custom_id, "status": line.status, "pictures": len(pictures)}
        return json.dumps(told).encode() + b"\n"


@pytest.fixture
def storage(clock):
    return Storage(Settings(), clock=clock)


@pytest.fixture
def jobs(database):
    return Jobs(database)


@pytest.fixture
def batches(database):
    return Batches(database, "a", LEASE)


@pytest.fixture
def runner(batches, jobs, storage, clock):
    rules = BatchRules(1000.0, 500.0)
    return BatchRunner(
        batches,
        jobs,
        storage.files,
        storage.jobs,
        Outcome(),
        lambda model: model in (None, "tiny"),
        rules,
        lambda: None,
        Owner(None),
        clock,
    )


@pytest.fixture
def post(batches, storage, clock):
    """Starts a batch of so many lines."""

    async def start(lines: int = 3, **fields: object) -> BatchRecord:
        requests = ({"custom_id": f"l{n}", "method": "POST", "url": URL, "body": {}} for n in range(lines))
        data = "\n".join(map(json.dumps, requests)).encode()
        file = await storage.files.create(
            data,
            tenant="alice",
            filename="in",
            purpose="batch",
            nbytes=len(data),
            content_type="",
            lifetime_seconds=None,
        )
        record = BatchRecord("batch_1", "alice", URL, file.id, b"{}", b"null", clock.now, clock.now + 100)
        await batches.add(replace(record, **fields))
        return record

    return start


async def lines_of(batches) -> list:
    record = await batches.get("alice", "batch_1")
    return list(await batches.lines(record, 0, 100))


async def finish(jobs, storage, line) -> None:
    outputs = await storage.jobs.put_outputs(line.id[-32:], [b"picture"], "png")
    assert await jobs.finish(line.id, Ending(JobStatus.COMPLETED, 1.0, None, outputs=",".join(outputs), nbytes=7))


async def output(storage, file_id: str) -> list[str]:
    download = await storage.files.open(storage.files.get("alice", file_id))
    data = b"".join([bytes(chunk) async for chunk in download.chunks])
    assert len(data) == storage.files.get("alice", file_id).nbytes
    return [json.loads(line)["id"] for line in data.splitlines()]


async def test_from_the_file_to_the_output(post, runner, batches, jobs, storage):
    await post()
    assert await runner.step()
    assert not await runner.step(), "its lines are to be run first"
    lines = await lines_of(batches)
    assert [(line.line, line.custom_id) for line in lines] == [(1, "l0"), (2, "l1"), (3, "l2")]
    for line in lines:
        await finish(jobs, storage, line)
    assert await runner.step()
    done = await batches.get("alice", "batch_1")
    assert (done.status, done.completed, done.failed, done.error_file_id) == (BatchStatus.COMPLETED, 3, 0, None)
    assert await output(storage, done.output_file_id) == ["l0", "l1", "l2"]
    assert storage.files.get("alice", done.output_file_id).expires_at == done.ended_at + 500
    assert await lines_of(batches) == []
    assert await storage.jobs.output(lines[0].outputs) is None
    assert await jobs.held_bytes() == {}


async def test_validation_that_was_interrupted_begins_again(post, runner, batches, clock, monkeypatch):
    record = await post()
    change = runner._batches.change

    async def die(*_: object, **__: object) -> bool:
        raise Killed

    monkeypatch.setattr(runner._batches, "change", die)
    with pytest.raises(BaseExceptionGroup):
        await runner.step()
    monkeypatch.setattr(runner._batches, "change", change)
    assert len(await lines_of(batches)) == 3
    assert not await runner.step(), "under a lease"
    clock.now += LEASE + 1
    assert await runner.step()
    assert len(await lines_of(batches)) == 3
    assert (await batches.get("alice", record.id)).status is BatchStatus.IN_PROGRESS


async def test_output_that_was_written_before_a_death_is_not_there_twice(
    post, runner, batches, jobs, storage, clock, monkeypatch
):
    await post()
    await runner.step()
    for line in await lines_of(batches):
        await finish(jobs, storage, line)
    write = runner._write

    async def write_and_die(*arguments: object, **more: object) -> None:
        await write(*arguments, **more)
        raise Killed

    monkeypatch.setattr(runner, "_write", write_and_die)
    with pytest.raises(BaseExceptionGroup):
        await runner.step()
    monkeypatch.setattr(runner, "_write", write)
    clock.now += LEASE + 1
    assert await runner.step()
    files = [file for file in storage.files.of("alice") if file.purpose == "batch_output"]
    assert [file.id for file in files] == [(await batches.get("alice", "batch_1")).output_file_id]


async def test_what_was_not_run_within_the_window_is_expired(post, runner, batches, jobs, storage, clock):
    await post()
    await runner.step()
    await finish(jobs, storage, (await lines_of(batches))[1])
    clock.now += 100
    assert await runner.step()
    done = await batches.get("alice", "batch_1")
    assert (done.status, done.completed, done.failed) == (BatchStatus.EXPIRED, 1, 2)
    assert await output(storage, done.output_file_id) == ["l1"]
    assert await output(storage, done.error_file_id) == ["l0", "l2"]


async def test_a_line_whose_pictures_are_lost_has_failed_after_all(post, runner, batches, jobs, storage):
    await post(2)
    await runner.step()
    for line in await lines_of(batches):
        await finish(jobs, storage, line)
    (lost, _) = await lines_of(batches)
    await storage.jobs.drop_outputs([lost.outputs])
    with pytest.raises(StoreError, match="missing"):
        await runner.step()
    assert await runner.step(), "at once, not when a lease is over"
    done = await batches.get("alice", "batch_1")
    assert (done.status, done.completed, done.failed) == (BatchStatus.COMPLETED, 1, 1)
    assert await output(storage, done.error_file_id) == ["l0"]


async def test_cancelling_while_its_file_is_read(post, runner, batches, clock):
    record = await post()
    taken = await batches.take(clock.now)
    assert await batches.cancel(record.id, clock.now)
    await runner._add(taken, [Place(1, 0, 9, "l0"), Place(2, 10, 9, "l1")])
    assert not await batches.change(taken, status=BatchStatus.IN_PROGRESS), "it is no longer this attempt's"
    assert await runner.step()
    done = await batches.get("alice", record.id)
    assert (done.status, done.total, done.completed, done.failed) == (BatchStatus.CANCELLED, 2, 0, 2)
    assert not await batches.cancel(record.id, clock.now)


async def test_what_a_death_left_of_a_batch_that_is_over_is_swept(post, runner, batches, jobs, storage, job, clock):
    await post(status=BatchStatus.COMPLETED, ended_at=clock.now)
    await jobs.add([job("job_" + "1" * 32, batch_id="batch_1", line=1, nbytes=9)])
    await finish(jobs, storage, (await lines_of(batches))[0])
    (name,) = [line.outputs for line in await lines_of(batches)]
    await runner.sweep()
    assert await lines_of(batches) == []
    assert await storage.jobs.output(name) is None
    clock.now += 1001
    await runner.sweep()
    assert await batches.get("alice", "batch_1") is None


async def test_an_old_batch_takes_its_lines_with_it(post, runner, batches, jobs, job, clock):
    await post(status=BatchStatus.COMPLETED, ended_at=clock.now - 1001)
    await jobs.add([job("job_" + "1" * 32, batch_id="batch_1", line=1, nbytes=9)])
    await runner.sweep()
    assert await batches.get("alice", "batch_1") is None
    assert await jobs.held_bytes() == {}


async def test_a_file_that_is_gone(post, runner, batches, storage):
    record = await post()
    await storage.files.delete(storage.files.get("alice", record.input_file_id))
    assert await runner.step()
    done = await batches.get("alice", record.id)
    assert done.status is BatchStatus.FAILED
    assert json.loads(done.errors)["data"][0]["code"] == "file_not_found"
