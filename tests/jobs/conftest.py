"""A database in the test's folder, a clock that stands still, and jobs to put into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from gateway.database.database import Database
from gateway.database.jobs import JobRecord
from gateway.settings import Settings
from tests.databases import prepared
from tests.needed import needs


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


POSTGRES = pytest.param("postgres", marks=[pytest.mark.services, needs("postgresql")])


@pytest.fixture(params=["sqlite", POSTGRES])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = request.getfixturevalue("postgres") if request.param == "postgres" else None
    opened = Database(Settings(state_dir=prepared(tmp_path), database_url=url))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def job(clock: Clock) -> Callable[..., JobRecord]:
    """Makes jobs, each a second younger than the one before."""
    numbers = count()

    def make(job_id: str = "", **fields: object) -> JobRecord:
        number = next(numbers)
        given = {"tenant": "alice", "created_at": clock.now + number, "deadline_at": clock.now + 86_400} | fields
        return JobRecord(
            id=job_id or f"job_{number:032x}", endpoint="/v1/images/generations", model="tiny", request=b"{}", **given
        )

    return make
