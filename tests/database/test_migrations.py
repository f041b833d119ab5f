"""Migrations: from nothing, from every version before, one that fails, one from the future, several at once."""

from __future__ import annotations

import importlib
import pkgutil
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import gateway.database
from gateway.database import migrate
from gateway.database.engines import FILE_NAME
from gateway.database.errors import DatabaseRefused
from gateway.database.tables import metadata


def differences(connection):
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return compare_metadata(context, metadata)


async def tables_differ(database):
    for module in pkgutil.iter_modules(gateway.database.__path__, "gateway.database."):
        if not module.ispkg:
            importlib.import_module(module.name)
    async with database.session() as connection:
        return await connection.run_sync(differences)


async def test_migrations_make_the_tables_that_the_code_knows(database):
    assert await tables_differ(database) == []


def test_revisions_are_one_line_of_descent_in_the_order_of_their_numbers():
    known = ScriptDirectory(str(migrate.MIGRATIONS))
    numbers = [script.revision for script in known.walk_revisions()]
    assert numbers == sorted(numbers, reverse=True)
    assert known.get_heads() == numbers[:1]


def dump(path):
    with sqlite3.connect(path / FILE_NAME) as connection:
        return list(connection.iterdump())


async def test_one_that_fails_leaves_the_old_state(make, failing, tmp_path):
    first = make()
    await first.open()
    await first.close()
    before = dump(tmp_path)
    failing()
    with pytest.raises(DatabaseRefused, match=r"could not be migrated from revision \d+ to 9999, and is as it was"):
        await make().open()
    assert dump(tmp_path) == before


async def test_one_that_fails_on_nothing_leaves_nothing(make, failing, tmp_path):
    failing()
    with pytest.raises(DatabaseRefused, match="from revision none to 9999"):
        await make().open()
    assert dump(tmp_path) == ["BEGIN TRANSACTION;", "COMMIT;"]


async def test_a_newer_database_is_left_alone(database, make, tmp_path):
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '8888'")
    before = dump(tmp_path)
    with pytest.raises(DatabaseRefused, match=r"of a newer version \(revision 8888\)"):
        await make().open()
    assert dump(tmp_path) == before
