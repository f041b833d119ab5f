"""A device without enough memory for a job: only that job suffers, and the same process serves on."""

from __future__ import annotations

import asyncio

import pytest

from gateway.service.interfaces import OutOfDeviceMemory
from scheduler import events as ev
from tests.stage_server.scarce import ALWAYS, ONCE, ROLE
from wire.errors import Code
from wire.types import REQUIRED

pytestmark = pytest.mark.services


@pytest.mark.parametrize("role", list(REQUIRED))
async def test_only_that_job_fails_or_is_retried_and_the_server_serves_on(service, role):
    server = await service.serve(
        "all", *REQUIRED, model="tiny-shapes", module="tests.stage_server.scarce", **{ROLE: role}
    )
    seeds = (1, ALWAYS, ONCE, 2)
    asked = [service.generate(model="tiny-shapes", seed=seed, steps=2, deadline=120) for seed in seeds]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Finished", "OutOfDeviceMemory", "Finished", "Finished"]
    assert isinstance(answers[1], OutOfDeviceMemory)
    failed = [event for event in service.tape.events if isinstance(event, ev.JobFailed)]
    assert [event.code for event in failed] == [Code.OUT_OF_MEMORY] * 4, "three of one job and one of another"
    assert (await service.generate(model="tiny-shapes", seed=1, steps=2, deadline=120)).images == answers[0].images
    assert server.popen.poll() is None
    assert len([event for event in service.tape.events if isinstance(event, ev.ServerJoined)]) == 1
    assert "Traceback" not in server.text()
    await service.all_stores_empty()
