"""Devices that hang: real processes, whose gateway retries elsewhere and gives up a job that hangs every device."""

from __future__ import annotations

import asyncio

import pytest

from gateway.service.interfaces import GenerationFailed
from scheduler import actions as act
from scheduler import events as ev
from tests.stage_server.hanging import HUNG_WIDTH
from wire.errors import Code
from wire.types import REQUIRED, Role

pytestmark = pytest.mark.services

E, T, D = Role.ENCODER, Role.DIT, Role.DECODER
OTHERS = {E: (T, D), T: (E, D), D: (E, T)}
HANGING = {"module": "tests.stage_server.hanging", "options": ("--stuck-seconds", "0.2")}


def stuck(service) -> list[ev.JobFailed]:
    return [event for event in service.tape.events if isinstance(event, ev.JobFailed) and event.code == Code.STUCK]


async def exited(process) -> int:
    return await asyncio.to_thread(process.popen.wait, 30)


@pytest.mark.parametrize("role", [E, T, D])
async def test_the_job_is_retried_elsewhere_and_nothing_else_is_repeated(service, role):
    await service.serve_all(rest=OTHERS[role])
    victim = await service.serve("hangs", role, **HANGING)
    pictures = [service.generate(width=HUNG_WIDTH, steps=2), service.generate(width=HUNG_WIDTH, steps=2)]
    await service.tape.find(ev.JobStarted, lambda event: event.server.startswith("hangs"))
    await service.serve("sound", role)
    for picture in pictures:
        assert (await picture).images[0].startswith(b"\x89PNG")
    assert await exited(victim) == 1
    assert len(stuck(service)) == 1
    others = [r for r in REQUIRED if r is not role]
    assert [len(service.tape.runs(r)) for r in others] == [2, 2]
    await service.all_stores_empty()


async def test_a_job_that_hangs_every_device_costs_two_servers_and_not_all(service):
    await service.serve_all(rest=(E, D))
    victims = [await service.serve(name, T, **HANGING) for name in ("a", "b", "c")]
    with pytest.raises(GenerationFailed, match="2 stage servers stood still while they worked on this request"):
        await service.generate(width=HUNG_WIDTH, steps=2)
    (survivor,) = [process for process in victims if process.popen.poll() is None] if await gone(victims, 2) else ()
    assert (await service.generate(steps=2)).images[0].startswith(b"\x89PNG")
    assert survivor.popen.poll() is None
    assert len(stuck(service)) == 2
    failure = await service.tape.find(act.Fail)
    assert failure.code == Code.STUCK
    await service.all_stores_empty()


async def gone(processes, count: int) -> bool:
    async with asyncio.timeout(120):
        while sum(process.popen.poll() is not None for process in processes) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return True
