"""One server with every role and the settings that users get: others' encoding and decoding go between two steps."""

from __future__ import annotations

import asyncio

import pytest

from gateway.service.interfaces import ImageRequest
from scheduler import events as ev
from wire.params import ImageParams
from wire.types import REQUIRED, Role

pytestmark = pytest.mark.services


def ask(service, name, *, seed, steps, exact):
    images = (ImageParams(prompt="a star", width=64, height=64, seed=seed, num_inference_steps=steps),)
    request = ImageRequest(
        request_id=name, model="tiny-shapes", images=images, deadline_seconds=300.0, priority=0, exact=exact
    )
    return asyncio.create_task(service.gateway.dispatcher.generate(request), name=name)


async def test_jobs_join_midway_and_exact_ones_are_what_they_are_alone(service):
    await service.serve("one", *REQUIRED, model="tiny-shapes")
    alone = (await ask(service, "alone", seed=3, steps=12, exact=True)).images
    long = ask(service, "long", seed=1, steps=200, exact=False)
    await service.tape.find(ev.JobProgressed, lambda event: event.step > 0)
    others = [ask(service, f"fast{seed}", seed=seed, steps=30, exact=False) for seed in (2, 3, 4, 5)]
    await asyncio.gather(*others)
    again = ask(service, "again", seed=3, steps=12, exact=True)
    assert (await again).images == alone
    finished = await long
    runs = {run.job: run for role in REQUIRED for run in service.tape.runs(role)}
    let_in = [job for job, run in runs.items() if run.preempt and not run.keep_seconds]
    assert any(job.endswith("/encoder") for job in let_in), "with its denoising to follow"
    assert any(job.startswith("fast") and "/decoder" in job for job in let_in), "while the long one goes on"
    assert any("together with" in run.reason for run in runs.values())
    assert all(not runs[job].share for job in runs if job.startswith(("alone", "again")))
    paused = [event for event in service.tape.events if isinstance(event, ev.JobPaused)]
    assert paused
    (report,) = (stage for stage in finished.stages if stage.role is Role.DIT)
    assert report.steps == 200
    await service.all_stores_empty()
