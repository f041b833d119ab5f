"""Transactions that are one function each, several of which are committed as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, exc

from gateway.database.database import Database
from gateway.database.errors import DatabaseError, Trouble
from gateway.settings import Settings


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(Settings(state_dir=tmp_path))
    await made.open()
    async with made.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE notes (name TEXT PRIMARY KEY)")
    yield made
    await made.close()


def noting(name: str):
    def note(connection: Connection) -> str:
        connection.exec_driver_sql("INSERT INTO notes VALUES (?)", (name,))
        return name

    return note


async def names(database: Database) -> list[str]:
    async with database.session() as connection:
        return list((await connection.exec_driver_sql("SELECT name FROM notes ORDER BY name")).scalars())


@pytest.fixture
def commits(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many transactions each commit of the thread had."""
    writer, seen = database._thread_writer, []
    assert writer is not None
    together = writer._together
    monkeypatch.setattr(writer, "_together", lambda works: seen.append(len(works)) or together(works))
    return seen


async def test_what_waits_while_one_writes_is_committed_as_one(database: Database, commits: list[int]) -> None:
    async with database.begin():  # nobody else writes
        under_way = [asyncio.ensure_future(database.write(noting(name))) for name in "abc"]
        await asyncio.sleep(0)
    assert await asyncio.gather(*under_way) == ["a", "b", "c"]
    assert commits == [3]
    assert await names(database) == ["a", "b", "c"]


async def test_one_that_cannot_be_done_takes_no_other_with_it(database: Database, commits: list[int]) -> None:
    await database.write(noting("b"))
    told = await asyncio.gather(*(database.write(noting(name)) for name in "abc"), return_exceptions=True)
    assert [told[0], told[2]] == ["a", "c"]
    assert isinstance(told[1], exc.IntegrityError)
    assert commits == [1, 3, 1, 1, 1]
    assert await names(database) == ["a", "b", "c"]
    assert database.healthy


async def test_trouble_with_the_database_is_told_to_all_at_once(
    database: Database, commits: list[int], tmp_path: Path
) -> None:
    def full(connection: Connection) -> None:
        (pages,) = connection.exec_driver_sql("PRAGMA page_count").one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        connection.exec_driver_sql("INSERT INTO notes VALUES (?)", ("x" * 1_000_000,))

    told = await asyncio.gather(database.write(full), database.write(noting("a")), return_exceptions=True)
    assert [error.trouble for error in told if isinstance(error, DatabaseError)] == [Trouble.FULL] * 2
    assert commits == [2]
    assert await names(database) == []


async def test_what_nobody_waits_for_any_more_is_done_all_the_same(database: Database) -> None:
    async with database.begin():
        under_way = asyncio.ensure_future(database.write(noting("a")))
        await asyncio.sleep(0)
        under_way.cancel()
        await asyncio.wait([under_way])
    await database.write(noting("b"))
    assert await names(database) == ["a", "b"]
