"""The same on a real PostgreSQL, and what only a server can do: end, come back, be asked by several at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
from sqlalchemy import text

from gateway.accounts.caller import Caller, Limits, Scope
from gateway.database.errors import DatabaseError, DatabaseRefused, Trouble
from gateway.database.keys import StoredKeys
from tests.database.test_database import COUNT, count
from tests.database.test_migrations import REVISIONS, survive, tables_differ
from tests.needed import needs
from tests.servers import Postgres

pytestmark = [pytest.mark.services, needs("postgresql")]

MIGRATE = """
import asyncio, logging, sys
from gateway.database.database import Database
from gateway.settings import Settings
logging.basicConfig(level="INFO")
asyncio.run(Database(Settings(database_url=sys.argv[1])).open())
"""


async def test_migrations_make_the_tables_that_the_code_knows(make, postgres):
    database = make(database_url=postgres)
    await database.open()
    assert await tables_differ(database) == []


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_filled_database_of_every_version_keeps_its_rows(make, revise, monkeypatch, revision, postgres):
    await survive(make, revise, monkeypatch, revision, database_url=postgres)


def test_of_several_that_start_at_once_one_migrates(postgres):
    command = [sys.executable, "-c", MIGRATE, postgres]
    gateways = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    logs = [gateway.communicate(timeout=60)[1] for gateway in gateways]
    assert [gateway.returncode for gateway in gateways] == [0, 0, 0], logs
    assert "".join(logs).count("from revision none to") == 1


async def test_a_migration_that_fails_leaves_the_old_state(make, postgres, failing, postgres_server):
    bad = failing()
    with pytest.raises(DatabaseRefused, match=f"could not be migrated from revision none to {bad}"):
        await make(database_url=postgres).open()
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert postgres_server.sql(tables, postgres.rpartition("/")[2]) == "0"


async def test_transactions(make, postgres):
    database = make(database_url=postgres)
    await database.open()

    async def add():
        async with database.begin() as connection:
            await connection.execute(COUNT)

    await asyncio.gather(*(add() for _ in range(50)))
    assert await count(database) == 50


async def test_keys(make, postgres):
    gateways = [make(database_url=postgres) for _ in range(2)]
    for each in gateways:
        await each.open()
    here, there = map(StoredKeys, gateways)
    limits = Limits(60, None, 2, 3600.5)
    caller = Caller("alice", "", frozenset({Scope.EDIT}), frozenset({"tiny"}), limits)
    keys = [await here.create(caller, "laptop", bytes([number]) * 32, 5.0 + number, 99.5) for number in range(20)]
    await asyncio.gather(  # in opposite orders, which must not be a deadlock
        here.note_used(dict.fromkeys(keys, 6.0)), there.note_used(dict.fromkeys(reversed(keys), 7.0))
    )
    change, records = await there.changed_since(None)
    assert change == len(records) == 20
    first = next(record for record in records if record.caller.key == keys[0])
    assert first.caller == replace(caller, key=keys[0])
    assert (first.name, first.digest, first.created, first.expires) == ("laptop", bytes(32), 5.0, 99.5)
    assert {record.last_used for record in records} == {7.0}
    assert (await there.revoke(keys[0], 8.0)).revoked is None
    assert (await here.changed_since(change))[0] == change + 1
    assert (await here.all("alice"))[0].revoked == 8.0


async def test_a_server_that_ends_and_comes_back(make, said, clock):
    with Postgres() as server:
        database = make(database_url=server.new_database())
        await database.open()
        async with database.begin() as connection:
            await connection.execute(COUNT)
        server.crash()
        for clock.now in (1.0, 1.0, 3.0):
            with pytest.raises(DatabaseError, match="cannot be reached"):
                await count(database)
        assert not database.healthy
        server.start()
        clock.now = 5.0
        assert await count(database) == 1
        assert database.healthy
    lost, back = said()
    assert f"127.0.0.1:{server.port}: it cannot be reached" in lost
    assert "works again" in back


async def test_a_server_that_is_not_there_at_the_start(make, said):
    with Postgres() as server:
        url = server.new_database()
        server.stop()
        database = make(database_url=url)
        with pytest.raises(DatabaseError, match="cannot be reached"):
            await database.open()
        opening = asyncio.create_task(database.run())
        server.start()
        async with asyncio.timeout(120):
            await opening
        assert await count(database) == 0
    assert len(said()) == 2


async def test_a_lock_that_is_held_too_long(make, postgres, monkeypatch):
    monkeypatch.setattr("gateway.database.engines.LOCK_SECONDS", 0.1)
    database, other = make(database_url=postgres), make(database_url=postgres)
    await database.open()
    await other.open()

    async def wait_for_the_row():
        async with database.begin() as connection:
            await connection.execute(COUNT)

    async with other.begin() as connection:
        await connection.execute(COUNT)
        with pytest.raises(DatabaseError) as caught:
            await wait_for_the_row()
    assert caught.value.trouble is Trouble.LOCKED


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("{server}/no_such_database", 'database "no_such_database" does not exist'),
        ("postgresql://nobody@127.0.0.1:{port}/postgres", 'role "nobody" does not exist'),
    ],
)
async def test_a_server_that_refuses(make, postgres, postgres_server, url, words):
    database = make(database_url=url.format(server=postgres.rpartition("/")[0], port=postgres_server.port))
    with pytest.raises(DatabaseError, match=words) as caught:
        await database.open()
    assert caught.value.trouble is Trouble.REFUSED


async def test_a_statement_that_takes_too_long(make, postgres):
    database = make(database_url=postgres, seconds=0.2)
    await database.open()

    async def sleep():
        async with database.session() as connection:
            await connection.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(DatabaseError) as caught:
        await sleep()
    assert caught.value.trouble is Trouble.SLOW
