"""Transactions, their ends, and what is said when the database stops working."""

from __future__ import annotations

import asyncio
import importlib.util
import sqlite3

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from gateway.database import engines
from gateway.database.engines import SYNCHRONOUS
from gateway.database.errors import DatabaseError, DatabaseRefused, Trouble
from gateway.given_settings import load_settings
from gateway.settings import InvalidSettings

COUNT = text("UPDATE key_changes SET count = count + 1")
READ = text("SELECT count FROM key_changes")


async def count(database):
    async with database.session() as connection:
        return await connection.scalar(READ)


async def test_what_was_committed_is_there_for_another_process(make):
    first = make()
    await first.open()
    async with first.begin() as connection:
        await connection.execute(COUNT)
    await first.close()
    second = make()
    await second.open()
    assert await count(second) == 1
    assert second.healthy


async def test_an_exception_undoes_the_transaction(database):
    async def fail():
        async with database.begin() as connection:
            await connection.execute(COUNT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await count(database) == 0
    assert database.healthy


async def test_a_cancelled_transaction_is_undone_and_its_connection_is_of_use_again(database):
    counted = asyncio.Event()

    async def stuck():
        async with database.begin() as connection:
            await connection.execute(COUNT)
            counted.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stuck())
    await counted.wait()
    task.cancel()
    await asyncio.wait([task])
    async with database.begin() as connection:
        await connection.execute(COUNT)
    assert await count(database) == 1


async def test_many_writers_of_one_process_wait_for_each_other(database):
    async def add():
        async with database.begin() as connection:
            before = await connection.scalar(READ)
            await connection.execute(text("UPDATE key_changes SET count = :count"), {"count": before + 1})

    await asyncio.gather(*(add() for _ in range(50)))
    assert await count(database) == 50


async def test_readers_do_not_wait_for_the_writer(database):
    async with database.begin() as connection:
        await connection.execute(COUNT)
        assert await count(database) == 0
    assert await count(database) == 1


async def test_a_function_that_reads_does_not_wait_for_the_writer_and_only_reads(database):
    async with database.begin() as connection:
        await connection.execute(COUNT)
        assert await database.read(lambda connection: connection.scalar(READ)) == 0
    assert await database.read(lambda connection: connection.scalar(READ)) == 1
    with pytest.raises(DatabaseError, match="cannot be written"):
        await database.read(lambda connection: connection.execute(COUNT))
    assert await database.read(lambda connection: connection.scalar(READ)) == 1, "and goes on"


async def test_a_session_only_reads(database):
    with pytest.raises(DatabaseError, match="cannot be written"):
        async with database.session() as connection:
            await connection.execute(COUNT)


async def test_a_broken_constraint_is_for_the_module_that_knows_it(database):
    with pytest.raises(IntegrityError):
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO key_changes (one, count) VALUES (1, 0)"))
    assert database.healthy


async def test_the_file_is_its_users_alone_and_safe_from_power_failures(make, monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "SYNCHRONOUS", SYNCHRONOUS)
    database = make()
    await database.open()
    file = tmp_path / engines.FILE_NAME
    assert file.stat().st_mode & 0o777 == 0o600
    async with database.begin() as connection:
        found = [await connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]


async def test_nothing_before_it_is_open(make):
    with pytest.raises(DatabaseError, match="not been opened"):
        await count(make())


async def test_a_lock_that_is_held_too_long(make, said, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "LOCK_SECONDS", 0.0)
    database = make()
    await database.open()
    other = sqlite3.connect(tmp_path / engines.FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        with pytest.raises(DatabaseError, match="locked by another process") as caught:
            async with database.begin():
                raise AssertionError
        assert caught.value.trouble is Trouble.LOCKED
    assert await count(database) == 0  # reading goes on
    assert not database.healthy
    (line,) = said()
    assert "gateway.sqlite3: it is locked by another process" in line
    other.execute("COMMIT")
    async with database.begin() as connection:
        await connection.execute(COUNT)
    assert database.healthy
    assert ["works again" in line for line in said()] == [True]


async def test_a_transaction_that_takes_too_long_is_ended(make):
    database = make(seconds=0.05)
    await database.open()

    async def stuck():
        async with database.begin() as connection:
            await connection.execute(COUNT)
            await asyncio.Event().wait()

    with pytest.raises(DatabaseError) as caught:
        await stuck()
    assert caught.value.trouble is Trouble.SLOW
    assert not database.healthy


async def test_reading_does_not_suffer_from_a_writer_that_takes_too_long(make):
    database = make(seconds=0.05)
    await database.open()
    async with database._engines.writer.begin():  # the one connection that writes
        for _ in range(2):
            with pytest.raises(DatabaseError) as caught:
                async with database.begin():
                    raise AssertionError
            assert caught.value.trouble is Trouble.SLOW
            assert await count(database) == 0


async def test_after_a_lost_connection_one_tries_and_the_others_are_told_at_once(make, said, clock, monkeypatch):
    database = make()
    await database.open()
    tries = []

    class Unreachable:
        def begin(self):
            tries.append(clock.now)
            raise ConnectionRefusedError(111, "Connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(database, "_engines", engines.Engines(*[Unreachable()] * 3, where="the database at db1"))
        for now in (0.0, 0.0, 0.9, 1.1, 1.1, 1.9, 2.2, 60.5):
            clock.now = now
            with pytest.raises(DatabaseError, match="cannot be reached"):
                await count(database)
    assert tries == [0.0, 1.1, 2.2, 60.5]
    failure = "the database at db1: it cannot be reached ([Errno 111] Connection refused)"
    assert said() == [
        f"{failure}; the gateway serves on without it",
        f"{failure}; it was needed 8 times since it failed",
    ]
    clock.now = 62
    database._failed_in = database._engines.reader  # the real one is back in its place
    await count(database)
    (line,) = said()
    assert line.endswith(" works again; it was needed 8 times meanwhile")


async def test_each_trouble_is_said_once(make, said, clock, monkeypatch):
    database = make()
    await database.open()
    for _ in range(2):
        with pytest.raises(DatabaseError), database._watched(database._engines.reader):
            raise OSError("no")
    with pytest.raises(DatabaseError), database._watched(database._engines.reader):
        raise TimeoutError
    lost, slow = said()
    assert "cannot be reached" in lost
    assert "did not answer in time" in slow


async def test_a_file_that_is_no_database(make, said, tmp_path):
    (tmp_path / engines.FILE_NAME).write_bytes(b"nonsense " * 1000)
    with pytest.raises(DatabaseError, match="damaged, or no database"):
        await make().open()
    (line,) = said()
    assert line.endswith("(file is not a database); the gateway serves on without it")


def test_postgresql_needs_its_driver(make, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatabaseRefused, match=r"pip install 'disagfusion\[postgres\]'"):
        make(database_url="postgresql://gateway@db1/images")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://gateway:geheim@db1:port/images", "invalid literal"),
        ("postgresql://gateway:geheim@127.0.0.1/images?sslmode=perhaps", "sslmode"),
    ],
)
async def test_a_url_that_means_nothing_stops_the_start(make, url, words):
    with pytest.raises(DatabaseRefused, match=rf"DISAGFUSION_DATABASE_URL: .*{words}") as caught:
        await make(database_url=url).open()
    assert "geheim" not in str(caught.value)


def test_a_password_stays_out_of_messages(make):
    database = make(database_url="postgresql://gateway:geheim@db1:5433/images")
    assert database.where == "the database at db1:5433"
    several = make(database_url="postgresql://gateway:geheim@db1:5433,db2:5434/images")
    assert several.where == "the database at db1:5433,db2:5434"
    with pytest.raises(InvalidSettings, match="DISAGFUSION_DATABASE_URL: write postgresql://") as caught:
        load_settings(database_url="mysql://gateway:geheim@db1/images")
    assert "geheim" not in str(caught.value)
