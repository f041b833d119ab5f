"""Migrations: from nothing, from every version before, one that fails, one from the future, several at once."""

from __future__ import annotations

import importlib
import pkgutil
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, Float, Integer, LargeBinary, MetaData, Numeric, String

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


SAMPLES = (
    (Boolean, True),
    (Integer, 1),
    (Float, 1.5),
    (Numeric, 1.5),
    (LargeBinary, bytes(32)),
    (JSON, ["x"]),
    (String, "x"),
)


def fill(connection):
    """One row for every table, where it has none; returns all rows by table."""
    found = MetaData()
    found.reflect(connection)
    rows = {}
    for table in found.sorted_tables:
        if connection.execute(table.select()).first() is None:
            values = {
                column.name: next(sample for kind, sample in SAMPLES if isinstance(column.type, kind))
                for column in table.columns
            }
            connection.execute(table.insert(), values)
        rows[table.name] = connection.execute(table.select()).mappings().one()
    return rows


def contents(connection, like):
    found = MetaData()
    found.reflect(connection)
    return {name: connection.execute(found.tables[name].select()).mappings().one() for name in like}


def test_the_newest_revision_is_the_one_that_its_file_says():
    assert migrate.newest() == ScriptDirectory(str(migrate.MIGRATIONS)).get_current_head()


REVISIONS = [script.revision for script in ScriptDirectory(str(migrate.MIGRATIONS)).walk_revisions()]


async def survive(make, revise, monkeypatch, revision, **settings):
    """A database of ``revision`` with a row in every table is brought to a revision that is yet to come."""
    former = make(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "TARGET", revision)
        await former.open()
    async with former.begin() as connection:
        before = await connection.run_sync(fill)
    await former.close()
    later = revise('op.add_column("keys", sa.Column("colour", sa.String(), server_default="red"))')
    database = make(**settings)
    await database.open()
    async with database.session() as connection:
        after = await connection.run_sync(contents, before)
    assert before["alembic_version"]["version_num"] == revision
    assert after.pop("alembic_version")["version_num"] == later
    assert after["keys"]["colour"] == "red"
    for name, row in after.items():
        assert {column: row[column] for column in before[name] if column in row} == before[name]


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_filled_database_of_every_version_keeps_its_rows(make, revise, monkeypatch, revision):
    await survive(make, revise, monkeypatch, revision)


async def test_one_that_fails_leaves_the_old_state(make, failing, tmp_path):
    first = make()
    await first.open()
    async with first.begin() as connection:
        await connection.run_sync(fill)
    await first.close()
    before = dump(tmp_path)
    bad = failing()
    with pytest.raises(DatabaseRefused, match=rf"could not be migrated from revision \d+ to {bad}, and is as it was"):
        await make().open()
    assert dump(tmp_path) == before


async def test_one_that_fails_on_nothing_leaves_nothing(make, failing, tmp_path):
    bad = failing()
    with pytest.raises(DatabaseRefused, match=f"from revision none to {bad}"):
        await make().open()
    assert dump(tmp_path) == ["BEGIN TRANSACTION;", "COMMIT;"]


async def test_a_newer_database_is_left_alone(database, make, tmp_path):
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '8888'")
    before = dump(tmp_path)
    with pytest.raises(DatabaseRefused, match=r"of a newer version \(revision 8888\)"):
        await make().open()
    assert dump(tmp_path) == before
