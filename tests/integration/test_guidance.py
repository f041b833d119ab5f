"""Guidance on two servers: pictures are those of one, and whatever becomes of the second, the first goes on."""

from __future__ import annotations

import asyncio
import signal

import pytest

from scheduler import actions as act
from scheduler import events as ev
from wire.types import Role

pytestmark = pytest.mark.services

E, T, D = Role.ENCODER, Role.DIT, Role.DECODER
STEPS = 12
LONG = 60
"""Steps of a job that is still under way when something happens to it."""
ASKED = {"model": "tiny-shapes", "guidance": 3.0, "deadline": 600.0}


@pytest.fixture
def settings(settings):
    """On a busy machine nobody is to be taken for dead: what is computed is compared here."""
    return settings.model_copy(update={"liveness_seconds": 30.0})


class Always:
    """Whoever can help does."""

    def helper(self, attempt, able, view):
        server = next(iter(able), None)
        return None if server is None else (server, 0.5)


class Never:
    def helper(self, attempt, able, view):
        return None


@pytest.fixture
async def pair(service):
    """Two dit servers, of which one helps the other."""
    await service.serve_all(model="tiny-shapes", ends=(E, D), a=(T,), b=(T,))
    service.tape.policies.guidance = Always()
    return service


async def alone(service, **options):
    service.tape.policies.guidance = Never()
    finished = await service.generate(**ASKED, **options)
    service.tape.policies.guidance = Always()
    return finished.images


async def under_way(service):
    """A long job, and who helps with it, once both are seen to denoise."""
    help_ = await service.tape.find(act.Help)
    for epoch in (help_.epoch, help_.leader):
        await service.tape.find(ev.JobProgressed, lambda event, epoch=epoch: event.epoch == epoch and event.step > 0)
    return help_


def helped(service):
    return [action for action in service.tape.actions if isinstance(action, act.Help)]


async def last_word(service, epoch):
    kinds = (ev.JobDone, ev.JobFailed, ev.JobCancelled)
    return await service.tape.find(object, lambda item: isinstance(item, kinds) and item.epoch == epoch)


async def test_pictures_are_those_of_one_server(pair):
    for seed in range(5):
        expected = await alone(pair, steps=STEPS, seed=seed)
        assert (await pair.generate(**ASKED, steps=STEPS, seed=seed)).images == expected
    assert len(helped(pair)) == 5
    for help_ in helped(pair):
        end = await last_word(pair, help_.epoch)
        assert isinstance(end, ev.JobDone | ev.JobCancelled), "it did help"
    await pair.all_stores_empty()


async def test_the_second_dies_and_the_first_goes_on(pair):
    expected = await alone(pair, steps=LONG)
    picture = pair.generate(**ASKED, steps=LONG)
    help_ = await under_way(pair)
    pair.server_of(help_.server).kill()
    finished = await picture
    assert finished.images == expected
    (dit,) = (stage for stage in finished.stages if stage.role == T)
    assert (dit.attempts, dit.steps) == (1, LONG), "nothing began anew"


async def test_the_second_stands_still_and_the_first_goes_on(pair):
    expected = await alone(pair, steps=LONG)
    picture = pair.generate(**ASKED, steps=LONG)
    help_ = await under_way(pair)
    pair.server_of(help_.server).send(signal.SIGSTOP)
    assert (await picture).images == expected
    pair.server_of(help_.server).send(signal.SIGCONT)
    await last_word(pair, help_.epoch)
    await pair.all_stores_empty()


async def test_the_first_dies_and_the_second_is_free_for_the_job(pair):
    expected = await alone(pair, steps=LONG)
    picture = pair.generate(**ASKED, steps=LONG)
    help_ = await under_way(pair)
    pair.server_of(help_.partner).kill()
    assert (await picture).images == expected
    assert pair.tape.runs(T)[-1].server == help_.server


async def test_a_job_that_comes_has_the_second_for_itself(pair):
    expected = await alone(pair, steps=LONG)
    first = pair.generate(**ASKED, steps=LONG)
    help_ = await under_way(pair)
    other = await pair.generate(**ASKED, steps=STEPS, seed=5)
    assert not first.done(), "it need not wait for the first"
    (dit,) = (stage for stage in other.stages if stage.role == T)
    assert dit.server == help_.server.partition("/")[0]
    assert (await first).images == expected
    await pair.all_stores_empty()


async def test_a_client_that_goes_frees_both(pair):
    picture = pair.generate(**ASKED, steps=60 * LONG)
    help_ = await under_way(pair)
    picture.cancel()
    assert isinstance(await last_word(pair, help_.epoch), ev.JobCancelled | ev.JobDone)
    await last_word(pair, help_.leader)
    expected = await alone(pair, steps=STEPS)
    assert (await asyncio.wait_for(pair.generate(**ASKED, steps=STEPS), 240)).images == expected
    await pair.all_stores_empty()
