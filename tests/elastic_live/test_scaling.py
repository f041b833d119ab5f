"""A pool that may be empty, with a real gateway and real stage servers: the test is the launcher."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.settings import PoolTable, Settings
from scheduler import events as ev
from tests.elastic_live.conftest import KEY, PATIENCE
from wire.types import REQUIRED

pytestmark = pytest.mark.services

OPTIONS = ("--engine", "emulated", "--profile", "tiny-shapes-cpu", "--served-model-name", "shapes", "--pool", "halves")


@pytest.fixture
def settings() -> Settings:
    pool = PoolTable(model="shapes", min=0, max=2, cold_start_seconds=30.0)
    return Settings(admin_key=KEY, pools={"halves": pool}, heartbeat_seconds=0.5, liveness_seconds=5.0)


async def _pool(site: Any, **said: object) -> dict[str, Any]:
    """Of ``/admin/scaling``, once it says so."""
    async with asyncio.timeout(PATIENCE):
        while True:
            pools = (await site.http.get("/admin/scaling")).json()["pools"]
            if pools and said.items() <= pools["halves"].items():
                return dict(pools["halves"])
            await asyncio.sleep(0.2)


async def test_the_first_request_after_a_pause_waits_for_a_server_to_start(site: Any) -> None:
    await _pool(site, wanted=1, ready=0)  # so that the model is introduced
    await site.serve("first", *REQUIRED, options=OPTIONS)
    pool = await _pool(site, wanted=1, ready=1)
    assert list(pool["cold_starts"]) == ["first"]

    site.processes[0].terminate()
    await site.tape.find(ev.ServerLost)
    assert (await site.http.get("/readyz")).status_code == 200
    waiting = asyncio.create_task(site.picture("shapes", "256x256", 2, 1))
    await site.tape.find(ev.RequestArrived)
    assert (await _pool(site, starting=1, ready=0))["wanted"] == 1

    await site.serve("second", *REQUIRED, options=OPTIONS)
    answer = await waiting
    assert answer.status_code == 200
    assert float(answer.headers["x-predicted-wait-ms"]) > 5_000  # the start among it
