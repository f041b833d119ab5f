"""The load shifts from the ends of the pipeline to its middle: a server changes sides, and no request notices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.settings import Settings
from scheduler import actions as act
from scheduler import events as ev
from tests.elastic_live.conftest import KEY, PROFILE
from wire.types import Role

ENDS = (Role.ENCODER, Role.DECODER)

pytestmark = pytest.mark.services


@pytest.fixture
def settings() -> Settings:
    return Settings(
        admin_key=KEY,
        profiles=(PROFILE,),
        role_interval_seconds=0.25,
        role_dwell_seconds=1.0,
        heartbeat_seconds=0.5,
        liveness_seconds=5.0,
    )


async def flow(site: Any, count: int, gap: float, steps: int) -> list[Any]:
    """Requests in an open loop, ``gap`` seconds apart."""
    clock = asyncio.get_running_loop().time
    began = clock()
    requests = []
    for number in range(count):
        requests.append(asyncio.create_task(site.picture("two-halves", "64x64", steps, number)))
        await asyncio.sleep(began + (number + 1) * gap - clock())
    return requests


async def test_a_role_moves_when_the_load_shifts_and_nothing_is_lost(site: Any) -> None:
    options = ("--engine", "emulated", "--profile", str(PROFILE))
    await site.serve_all(options, a=ENDS, b=ENDS, c=(Role.DIT,))
    light = await flow(site, count=44, gap=0.15, steps=2)  # enough arrivals to plan by
    assert not site.tape.all(act.AssignRoles)  # light load: nothing moves
    plan = (await site.http.get("/admin/plan")).json()
    assert [model["verdict"] for model in plan["models"].values()] == [
        "every stage is less than 60% busy: nothing moves"
    ]

    heavy = await flow(site, count=24, gap=0.2, steps=20)  # 2 device-seconds of dit per second
    answers = await asyncio.gather(*light, *heavy)

    assert [answer.status_code for answer in answers] == [200] * 68
    (move,) = site.tape.all(act.AssignRoles)
    assert (move.server[0] in "ab", move.roles) == (True, {Role.DIT})
    assert "× the demand" in move.reason
    ready = await site.tape.find(ev.RolesReady, lambda event: event.epoch == move.epoch)
    assert ready.load_seconds == pytest.approx(0.3, abs=0.2)
    runs = site.tape.all(act.Run, lambda run: run.role is Role.DIT)
    assert len({run.server for run in runs}) == 2  # the newcomer computes
    assert len(runs) == len(site.tape.all(act.Run, lambda run: run.role is Role.DECODER)) == 68  # nothing ran twice
    why = (await site.http.get("/admin/why", params={"server": move.server[0]})).json()["decisions"]
    assert ("AssignRoles", "PlanReady") in [(one.get("decision"), one["event"]["kind"]) for one in why]


async def test_the_first_holder_of_a_role_that_nobody_has(site: Any) -> None:
    options = ("--engine", "emulated", "--profile", str(PROFILE))
    await site.serve_all(options, a=ENDS, b=ENDS)
    answer = await site.picture("two-halves", "64x64", 2, 0)
    assert answer.status_code == 200, answer.text
    (move,) = site.tape.all(act.AssignRoles)
    assert (move.roles, move.reason) == ({Role.DIT}, "no server held dit")
