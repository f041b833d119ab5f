"""What was deleted is on the disk no more."""

from __future__ import annotations

import sqlite3

import pytest

from gateway.database.errors import DatabaseError
from gateway.database.jobs import Jobs

PROMPT = b"a secret that nobody else is to read"


@pytest.fixture
def on_disk(tmp_path):
    def found() -> bool:
        return any(PROMPT in path.read_bytes() for path in tmp_path.glob("gateway.sqlite3*"))

    return found


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_deleted_prompt_is_in_no_file_of_the_database(database, job, on_disk):
    jobs = Jobs(database)
    await jobs.add([job("job_1")])
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE jobs SET request = ?", (PROMPT,))
    assert on_disk()
    await jobs.delete(["job_1"])
    assert on_disk(), "in the write-ahead log"
    await jobs.wipe()
    assert not on_disk()
    await jobs.add([job("job_2")])
    assert await jobs.get("alice", "job_2") is not None


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_reader_puts_it_off_and_holds_up_nobody(database, job, on_disk):
    jobs = Jobs(database)
    await jobs.add([job("job_1")])
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE jobs SET request = ?", (PROMPT,))
    async with database.session() as reader:
        await reader.exec_driver_sql("SELECT count(*) FROM jobs")
        await jobs.delete(["job_1"])
        await jobs.wipe()
        await jobs.add([job("job_2")])
    await jobs.wipe()
    assert not on_disk()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_another_process_that_holds_the_file_puts_it_off(database, job, tmp_path):
    jobs = Jobs(database)
    await jobs.add([job("job_1")])
    other = sqlite3.connect(tmp_path / "gateway.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    await jobs.wipe()
    other.execute("ROLLBACK")
    other.close()
    assert database.healthy
    await jobs.add([job("job_2")])


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_full_disk_is_an_error_of_the_database(database, job, monkeypatch):
    async def fail(_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise error

    jobs = Jobs(database)
    with monkeypatch.context() as patched:
        patched.setattr("gateway.database.database.checkpoint", fail)
        with pytest.raises(DatabaseError, match="full"):
            await jobs.wipe()
    assert not database.healthy
    await jobs.add([job("job_1")])
    assert database.healthy
