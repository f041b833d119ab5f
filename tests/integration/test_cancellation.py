"""A client that goes away gives back the device and every byte."""

from __future__ import annotations

import asyncio

import pytest

from gateway.service.interfaces import DeadlineExceeded
from scheduler import events as ev
from wire.types import REQUIRED

STEP_SECONDS = 0.05


async def test_the_device_is_free_within_a_step(service):
    await service.serve("one", *REQUIRED)
    picture = service.generate(steps=200)
    await service.tape.find(ev.JobProgressed)
    before = asyncio.get_running_loop().time()
    picture.cancel()
    await service.tape.find(ev.JobCancelled)
    waited = asyncio.get_running_loop().time() - before
    assert waited < STEP_SECONDS + 0.25, "a step, and what a busy machine adds"
    await service.all_stores_empty()
    assert not service.tape.view.jobs


async def test_work_that_waits_or_is_elsewhere_is_cancelled_too(service):
    await service.serve("one", *REQUIRED)
    pictures = [service.generate(n=2, steps=10) for _ in range(3)]
    await service.tape.find(ev.JobProgressed)
    for picture in pictures:
        picture.cancel()
    await asyncio.gather(*pictures, return_exceptions=True)
    await service.all_stores_empty()
    assert not service.tape.view.jobs
    assert (await service.generate(steps=1)).images[0].startswith(b"\x89PNG")


async def test_the_deadline_ends_the_work_as_well(service):
    await service.serve("one", *REQUIRED)
    with pytest.raises(DeadlineExceeded):
        await service.generate(steps=60, deadline=1.5)  # admitted: nothing is known of this model yet
    await service.all_stores_empty()
    assert not service.tape.view.jobs
