"""Stage servers that die or freeze at the worst moment: emulated engines, real processes, real signals."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import pytest

from gateway.service.interfaces import NoCapacity
from scheduler import actions as act
from scheduler import events as ev
from wire.types import REQUIRED, Role

pytestmark = pytest.mark.services

E, T, D = Role.ENCODER, Role.DIT, Role.DECODER
OTHERS = {E: (T, D), T: (E, D), D: (E, T)}


async def started(service, role) -> ev.JobStarted:
    """An attempt of ``role`` is on the device, a denoising one some steps in."""
    run = await service.tape.find(act.Run, lambda action: action.role is role)
    epoch = run.epoch
    kind = ev.JobProgressed if role is T else ev.JobStarted
    return await service.tape.find(kind, lambda event: event.epoch == epoch)


def delivered(service) -> Counter:
    return Counter(event.job for event in service.tape.events if isinstance(event, ev.ResultTaken))


@pytest.mark.parametrize("role", [E, T, D])
async def test_another_server_takes_over_and_nothing_else_is_repeated(service, role):
    await service.serve_all(first=(role,), second=(role,), rest=OTHERS[role])
    picture = service.generate()
    victim = await started(service, role)
    service.server_of(victim.server).kill()
    finished = await picture
    assert finished.images[0].startswith(b"\x89PNG")
    assert {r: len(service.tape.runs(r)) for r in REQUIRED} == {E: 1, T: 1, D: 1} | {role: 2}
    assert set(delivered(service).values()) == {1}
    (report,) = (stage for stage in finished.stages if stage.role == role)
    assert report.attempts == 2
    await service.all_stores_empty()


@pytest.mark.parametrize("role", [E, T, D])
async def test_without_another_server_the_request_waits_for_one(service, role):
    await service.serve_all(only=(role,), rest=OTHERS[role])
    picture = service.generate()
    victim = await started(service, role)
    service.server_of(victim.server).kill()
    await service.tape.find(ev.ServerLost)
    await service.serve("replacement", role)
    assert (await picture).images[0].startswith(b"\x89PNG")
    assert set(delivered(service).values()) == {1}


@pytest.mark.parametrize("role", [E, T, D])
async def test_without_a_replacement_the_deadline_brings_a_clean_503(service, http, role):
    await service.serve_all(only=(role,), rest=OTHERS[role])
    body = {"prompt": "x", "size": "64x64", "num_inference_steps": 60 if role is T else 2}
    answer = asyncio.create_task(http.post("/v1/images/generations", json=body, headers={"x-request-timeout": "2.5"}))
    victim = await started(service, role)
    service.server_of(victim.server).kill()
    response = await answer
    assert response.status_code == 503, response.text
    assert response.json()["error"]["code"] == "server_is_overloaded"
    assert role in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) >= 1
    await service.all_stores_empty()


async def test_outputs_that_died_before_they_were_fetched_are_made_again(service):
    """A busy dit has fetched the first embedding, perhaps the second, not the third: those are encoded again."""
    await service.serve_all(encoder=(E,), rest=(T, D))
    pictures = [service.generate(steps=30), service.generate(steps=1), service.generate(steps=1)]
    await service.tape.find(ev.JobDone, lambda event: event.server.startswith("encoder"), after=2)
    service.servers["encoder"].kill()
    await service.tape.find(ev.ServerLost)
    await service.serve("encoder", E)
    finished = await asyncio.gather(*pictures)
    assert all(one.images[0].startswith(b"\x89PNG") for one in finished)
    assert len(service.tape.runs(E)) in (4, 5, 6)  # the sixth: an input is missed before its server is
    assert len(service.tape.runs(D)) == 3
    assert set(delivered(service).values()) == {1}


async def test_a_frozen_server_that_wakes_up_is_refused_and_cleans_up(service):
    await service.serve_all(first=(T,), second=(T,), rest=(E, D))
    pictures = service.generate(n=2, steps=30)
    victim = await started(service, T)
    frozen = service.server_of(victim.server)
    frozen.send(signal.SIGSTOP)
    await service.tape.find(ev.ServerLost, lambda event: event.server == victim.server)
    finished = await pictures
    frozen.send(signal.SIGCONT)
    again = await service.tape.find(ev.ServerJoined, lambda event: event.server.id == victim.server, after=1)
    assert again.running or again.holds, "it did not know better"
    assert len(finished.images) == 2
    assert set(delivered(service).values()) == {1}
    await service.all_stores_empty()
    assert service.tape.view.servers[victim.server].attempts == {}
    assert (await service.generate(n=2, steps=1)).images[0].startswith(b"\x89PNG"), "it works again"


async def test_a_request_for_a_role_that_nobody_holds_ends_with_its_deadline(service):
    await service.serve("rest", E, D)
    with pytest.raises(NoCapacity, match="dit"):
        await service.generate(deadline=0.7)
