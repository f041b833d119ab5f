"""``/admin/scaling``: what launchers are told, and machines that are about to be lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest

from gateway.api.app import create_app
from gateway.given_settings import load_settings
from gateway.service.operator import Levers, Operator
from gateway.service.scaling import Scaling
from gateway.settings import InvalidSettings, Settings
from scheduler import events as ev
from scheduler.scaling.pools import Pool, ScalingSettings
from scheduler.scaling.scaler import Autoscaler
from tests.admin.conftest import KEY, Desk, NoService
from wire.to_stage import Shutdown
from wire.types import REQUIRED, ServerId


class Pooled:
    """The desk with an autoscaler beside it, told everything that the scheduler is told."""

    def __init__(self, desk: Desk, interval: float = 0.01) -> None:
        self.desk = desk
        pools = [Pool("gpus", "m", 1, 3, cold_start_seconds=60.0)]
        self.scaler = Autoscaler(pools, desk.scheduler.view, ScalingSettings(interval_seconds=interval))
        levers = Levers(self._order, lambda server, message: desk.sent.append((server, message)), dict)
        self.scaling = Scaling(self.scaler, desk.scheduler.view, levers)
        operator = Operator(
            desk.scheduler.view, desk.chosen.roles, desk.chosen.suspects, desk.decisions, levers, self.scaling.told
        )
        app = create_app(NoService(), Settings(admin_key=KEY), operator=operator)
        headers = {"authorization": f"Bearer {KEY}"}
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g", headers=headers)

    async def _order(self, judge: object) -> None:
        event = judge()  # type: ignore[operator]
        if event is not None:
            self.tell(event)

    def tell(self, event: ev.Event) -> None:
        self.desk.tell(event)
        self.scaler.note(event, asyncio.get_running_loop().time())

    def join(self, name: str) -> ServerId:
        server = self.desk.join(name, *REQUIRED)
        spec = replace(self.desk.scheduler.view.servers[server].spec, pool="gpus")
        self.tell(ev.ServerJoined(spec, dict.fromkeys(REQUIRED, 10)))
        return server

    async def until(self, said: object) -> dict[str, object]:
        """Runs the shell until it says so of the pool."""
        shell = asyncio.create_task(self.scaling.run())
        try:
            for _ in range(500):
                pools = (await self.http.get("/admin/scaling")).json()["pools"]
                if pools and said(pools["gpus"]):  # type: ignore[operator]
                    return dict(pools["gpus"])
                await asyncio.sleep(0.01)
            raise AssertionError(pools)
        finally:
            shell.cancel()


async def test_launchers_read_what_is_wanted_and_people_why(desk: Desk) -> None:
    site = Pooled(desk)
    told = await site.until(lambda pool: pool["wanted"] == 1)
    assert (told["ready"], told["starting"], told["drain"], told["cold_start_seconds"]) == (0, 1, [], 60.0)
    site.join("a")
    told = await site.until(lambda pool: pool["ready"] == 1)
    assert told["starting"] == 0
    assert list(told["cold_starts"]) == ["a"]  # type: ignore[call-overload]
    assert "asked for per second" in str(told["why"]) or "nothing" in str(told["why"])


async def test_a_server_whose_machine_goes_is_told_to_stop_and_replaced(desk: Desk) -> None:
    site = Pooled(desk)
    site.join("a")
    await site.until(lambda pool: pool["ready"] == 1)
    answer = await site.http.post("/admin/servers/a/loss", json={"within_seconds": 0})
    assert answer.status_code == 202
    told = await site.until(lambda pool: pool["drain"] == ["a"] and desk.sent)
    assert (told["wanted"], told["about_to_be_lost"]) == (1, ["a"])
    assert desk.sent[-1][1] == Shutdown()
    assert desk.scheduler.view.servers[ServerId("a/i1")].is_leaving


async def test_a_loss_needs_a_time_and_a_server(desk: Desk) -> None:
    site = Pooled(desk)
    site.join("a")
    assert (await site.http.post("/admin/servers/a/loss", json={"within_seconds": -1})).status_code == 400
    answer = await site.http.post("/admin/servers/b/loss", json={"within_seconds": 1})
    assert answer.status_code == 404
    assert "there are: a" in answer.json()["error"]["message"]


async def test_without_pools_nothing_is_wanted(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/admin/scaling")).json() == {"pools": {}}


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"model": "m", "min": 3, "max": 2}, r"max \(2\) must not be below min \(3\)"),
        ({"model": "m"}, "max"),
        ({"model": "m", "max": 2, "size": 1}, "size"),
        ({"model": "m", "max": 2, "roles": ["painter"]}, "roles"),
    ],
)
def test_a_pool_that_makes_no_sense_stops_the_start(pool: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidSettings, match=f"(?i)pools.*{said}"):
        load_settings(pools={"gpus": pool})
