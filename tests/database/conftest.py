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
def revise(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Adds a revision that does what it is given, and returns its number."""
    folder = tmp_path_factory.mktemp("scripts") / "migrations"

    def add(upgrade: str) -> str:
        if not folder.exists():
            shutil.copytree(migrate.MIGRATIONS, folder)
            monkeypatch.setattr(migrate, "MIGRATIONS", folder)
        head = ScriptDirectory(str(folder)).get_current_head()
        assert head is not None
        number = f"{int(head) + 1:04}"
        script = f'import sqlalchemy as sa\nfrom alembic import op\nrevision = "{number}"\ndown_revision = "{head}"\n'
        (folder / "versions" / f"{number}_later.py").write_text(f"{script}def upgrade():\n    {upgrade}\n")
        return number

    return add


@pytest.fixture
def failing(revise: Callable[[str], str]) -> Callable[[], str]:
    """From its call on, there are two more revisions, of which the second fails half way; returns its number."""

    def begin() -> str:
        revise('op.add_column("keys", sa.Column("colour", sa.String()))')
        return revise('op.drop_table("key_changes"); op.execute("INSERT INTO nowhere VALUES (1)")')

    return begin
