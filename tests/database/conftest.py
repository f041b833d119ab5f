"""Databases for tests of this room: SQLite files, and PostgreSQL where a test is marked ``services``."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from gateway.database import migrate
from gateway.database.database import Database
from gateway.settings import Settings

Make = Callable[..., Database]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(tmp_path: Path, clock: Clock) -> AsyncIterator[Make]:
    """Makes databases, closed at the end: in the test's folder, or as ``settings`` say."""
    made = []

    def database(seconds: float = 10.0, **settings: object) -> Database:
        made.append(Database(Settings(**({"state_dir": tmp_path} | settings)), seconds=seconds, clock=clock))
        return made[-1]

    yield database
    for each in made:
        await each.close()


@pytest.fixture
async def database(make: Make) -> Database:
    """An open SQLite database."""
    opened = make()
    await opened.open()
    return opened


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Warnings and errors of the room since the last call."""
    caplog.set_level(logging.WARNING, "gateway.database")

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name.startswith("gateway.database")]
        caplog.clear()
        return found

    return lines


@pytest.fixture
def failing(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, there are two more revisions, of which the second fails half way."""

    def begin() -> None:
        folder = tmp_path_factory.mktemp("scripts") / "migrations"
        shutil.copytree(migrate.MIGRATIONS, folder)
        head = ScriptDirectory(str(folder)).get_current_head()
        good = f'import sqlalchemy as sa\nfrom alembic import op\nrevision = "9998"\ndown_revision = "{head}"\n'
        good += 'def upgrade():\n    op.add_column("keys", sa.Column("colour", sa.String()))\n'
        (folder / "versions" / "9998_good.py").write_text(good)
        bad = 'from alembic import op\nrevision = "9999"\ndown_revision = "9998"\n'
        bad += 'def upgrade():\n    op.drop_table("key_changes")\n    op.execute("INSERT INTO nowhere VALUES (1)")\n'
        (folder / "versions" / "9999_bad.py").write_text(bad)
        monkeypatch.setattr(migrate, "MIGRATIONS", folder)

    return begin
