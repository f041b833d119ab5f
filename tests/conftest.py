from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tests.torchvision
from tests.databases import prepared
from tests.servers import Postgres, Redis

if TYPE_CHECKING:
    from gateway.database.database import Database

tests.torchvision.make_importable()

if importlib.util.find_spec("hypothesis"):  # not where only the tests marked ``gpu`` run
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # a crowded processor is no fault of the code
    settings.load_profile("untimed")

if importlib.util.find_spec("httpx"):  # likewise
    import httpx

    httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 60.0  # not five seconds, for the same reason


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Importing all files takes a minute or two; those without a test of the half that is asked for are left out."""
    half, *more = config.option.markexpr.split() or [""]
    if half in ("services", "nightly", "gpu") and "or" not in more and collection_path.name.startswith("test_"):
        near = (collection_path, collection_path.with_name("conftest.py"))
        return not any(half in path.read_text() for path in near if path.exists()) or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``--dist loadgroup`` keeps files whole, and those that say so in one process."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(autouse=True, scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no process that one starts, writes to the state directory of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "DISAGFUSION_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_fsync() -> Iterator[None]:
    """Databases of the tests' own process need not outlive a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("sqlalchemy"):  # not where only the tests marked ``gpu`` run
            patch.setattr("gateway.database.engines.SYNCHRONOUS", "OFF")
        yield


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """An open database in the test's folder."""
    from gateway.database.database import Database
    from gateway.settings import Settings

    opened = Database(Settings(state_dir=prepared(tmp_path)))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One for all tests that leave it running."""
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> str:
    """The url of an empty PostgreSQL database. Tests that use it are marked ``services`` and
    ``needs("postgresql")``; one that kills the server starts a ``Postgres`` of its own."""
    return postgres_server.new_database()


@pytest.fixture
def redis() -> Iterator[Redis]:
    """An empty Redis, for tests marked ``services`` and ``needs("redis-server")``."""
    server = Redis()
    try:
        server.start()
        yield server
    finally:
        server.kill()
