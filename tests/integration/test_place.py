"""The place in the queue, told in the streams of a real gateway with a stage server."""

from __future__ import annotations

import asyncio
import re

from scheduler import events as ev
from wire.types import REQUIRED

WAITING = re.compile(r"^: waiting, (\d+) ahead, about ([0-9.]+) s left$", re.MULTILINE)


async def test_streams_that_wait_are_told_how_many_go_before_them(service, http):
    """Four streams, one device, which each has alone: the last waits for more than a second behind others."""
    await service.serve("one", *REQUIRED)
    body = {"prompt": "x", "size": "64x64", "stream": True, "steps": 12}
    answers = await asyncio.gather(
        *(http.post("/v1/images/generations", json=body | {"seed": seed}) for seed in range(4))
    )
    assert all("event: image_generation.completed" in answer.text for answer in answers)
    told = [[int(ahead) for ahead, _ in WAITING.findall(answer.text)] for answer in answers]
    assert max(max(places, default=0) for places in told) >= 1
    assert all(float(left) > 0 for answer in answers for _, left in WAITING.findall(answer.text))
    assert len([event for event in service.tape.events if isinstance(event, ev.ResultTaken)]) == 4
    assert service.gateway.dispatcher.place("gone") is None
