"""A repeated prompt is not encoded again: a real gateway, real stage servers with the emulated engine."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import actions as act
from scheduler import events as ev
from wire.to_stage import Release
from wire.types import REQUIRED, Role

E, T, D = Role.ENCODER, Role.DIT, Role.DECODER


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"embedding_cache_bytes": 1 << 20})


async def known(service, name) -> None:
    """The gateway has heard how large its store is: servers say it in their heartbeats."""
    await service.tape.find(ev.RolesWarm, lambda event: event.server.startswith(name))


async def test_a_repeated_prompt_goes_straight_to_the_dit(service):
    await service.serve_all(encoding=(E,), rest=(T, D))
    await known(service, "encoding")
    first = await service.generate(seed=5)
    second = await service.generate(seed=5)
    third = await service.generate(seed=6)
    assert second.images == first.images != third.images
    assert {role: len(service.tape.runs(role)) for role in REQUIRED} == {E: 1, T: 3, D: 3}
    assert [stage.role for stage in second.stages] == [T, D]
    assert second.prompt == first.prompt


async def test_equal_prompts_that_come_together_are_encoded_once(service):
    await service.serve_all(encoding=(E,), other=(E,), rest=(T, D))
    await known(service, "encoding")
    await known(service, "other")
    made = await asyncio.gather(*(service.generate(seed=5) for _ in range(4)))
    assert len({finished.images for finished in made}) == 1
    assert {role: len(service.tape.runs(role)) for role in REQUIRED} == {E: 1, T: 4, D: 4}


async def test_what_is_lost_with_its_server_is_encoded_again(service):
    await service.serve_all(first=(E,), rest=(T, D))
    await known(service, "first")
    await service.generate(seed=5)
    service.servers["first"].kill()
    await service.tape.find(ev.ServerLost)
    await service.serve("second", E)
    assert (await service.generate(seed=5)).images[0].startswith(b"\x89PNG")
    assert len(service.tape.runs(E)) == 2


async def test_a_handle_that_leads_nowhere_costs_one_encoding(service):
    """As if the server had dropped it by itself."""
    await service.serve_all(encoding=(E,), rest=(T, D))
    await known(service, "encoding")
    await service.generate(seed=5)
    done = await service.tape.find(ev.JobDone, lambda event: event.server.startswith("encoding"))
    service.gateway.pool.send(done.server, Release(handles=tuple(output.handle for output in done.outputs)))
    await service.all_stores_empty()
    assert (await service.generate(seed=5)).images[0].startswith(b"\x89PNG")
    assert len(service.tape.runs(E)) == 2
    assert not [action for action in service.tape.actions if isinstance(action, act.Fail)]


async def test_a_server_that_leaves_does_not_wait_for_what_is_kept(service):
    encoding = await service.serve("encoding", E)
    await service.serve("rest", T, D)
    await known(service, "encoding")
    await service.generate(seed=5)
    assert await asyncio.to_thread(encoding.finish) == 0
    assert "all work is done and handed over" in encoding.text()
