"""A dit server that gives its role up, or leaves, in mid-request: another goes on, from the very step, to the bit."""

from __future__ import annotations

import asyncio
import signal

import pytest

from scheduler import events as ev
from wire.types import Role

pytestmark = pytest.mark.services

E, T, D = Role.ENCODER, Role.DIT, Role.DECODER
STEPS = 12


@pytest.fixture
def settings(settings):
    """On a busy machine nobody is to be taken for dead: what is computed is counted here."""
    return settings.model_copy(update={"liveness_seconds": 30.0})


class Always:
    """Whatever a server that gives the role up still computes goes elsewhere."""

    def worth(self, attempt, view, now):
        return "" if T in attempt.server.serving else "its server gives the role up"


async def give_roles(service, server, *roles):
    ready = sum(isinstance(event, ev.RolesReady) for event in service.tape.events)
    await service.gateway.dispatcher.order(lambda: ev.RolesOrdered(server, frozenset(roles)))
    return ready


@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.nightly)])
async def test_pictures_are_those_of_undisturbed_runs_and_no_step_is_computed_twice(service, times):
    service.tape.policies.migration = Always()
    await service.serve_all(model="tiny-shapes", ends=(E, D), a=(T,), b=(T,))
    ask = {"model": "tiny-shapes", "steps": STEPS, "deadline": 120, "seed": 3}
    expected = (await service.generate(**ask)).images
    moved = 0
    for _ in range(times):
        begun = len(service.tape.events)
        picture = service.generate(**ask)
        started = await newest(service, begun, ev.JobStarted, lambda event: is_dit(service, event))
        ready = await give_roles(service, started.server, D)
        finished = await picture
        assert finished.images == expected
        new = service.tape.events[begun:]
        moved += sum(isinstance(event, ev.JobHandedOver) and event.step > 0 for event in new)
        ends = [event for event in new if isinstance(event, ev.JobHandedOver | ev.JobDone) and event.timings.steps]
        assert sum(event.timings.steps for event in ends) == STEPS
        (report,) = (stage for stage in finished.stages if stage.role == T)
        assert report.steps == STEPS
        await service.tape.find(ev.RolesReady, after=ready)
        await give_roles(service, started.server, T)
        await service.tape.find(ev.RolesReady, after=ready + 1)
    assert moved > times // 2
    await service.all_stores_empty()


@pytest.mark.parametrize("engine", ["emulated", "tiny-shapes"])
async def test_a_server_that_is_told_to_stop_leaves_at_once(service, engine):
    model = {} if engine == "emulated" else {"model": engine}
    await service.serve_all(**model, ends=(E, D), a=(T,), b=(T,))
    steps = 60 if engine == "emulated" else 400
    picture = service.generate(**model, steps=steps, deadline=120)
    progressed = await service.tape.find(ev.JobProgressed, lambda event: is_dit(service, event))
    victim = service.server_of(progressed.server)
    victim.send(signal.SIGTERM)
    handed_over = await service.tape.find(ev.JobHandedOver)
    assert 0 < handed_over.step < steps
    assert await asyncio.to_thread(victim.popen.wait, 30) == 0
    unfinished = not any(isinstance(event, ev.ResultTaken) for event in service.tape.events)
    assert unfinished, "it need not wait for the picture"
    (dit,) = (stage for stage in (await picture).stages if stage.role == T)
    assert (dit.steps, dit.attempts) == (steps, 2)
    await service.all_stores_empty()


async def test_the_new_one_dies_and_the_denoising_starts_over(service):
    await service.serve_all(ends=(E, D), a=(T,), b=(T,))
    picture = service.generate(steps=60)
    progressed = await service.tape.find(ev.JobProgressed, lambda event: is_dit(service, event))
    service.server_of(progressed.server).send(signal.SIGTERM)
    handed_over = await service.tape.find(ev.JobHandedOver)
    resumed = await service.tape.find(ev.JobProgressed, lambda event: event.step > handed_over.step)
    service.server_of(resumed.server).kill()
    await service.serve("c", T)
    assert (await picture).images[0].startswith(b"\x89PNG")
    assert len(service.tape.runs(E)) == 1
    await service.all_stores_empty()


def is_dit(service, event):
    """Not of a server that helps with the guidance."""
    return any(event.epoch == run.epoch for run in service.tape.runs(T))


async def newest(service, since, kind, wanted):
    """The first such event after so many."""
    async with asyncio.timeout(240):
        while True:
            for event in service.tape.events[since:]:
                if isinstance(event, kind) and wanted(event):
                    return event
            service.tape.news.clear()
            await service.tape.news.wait()
