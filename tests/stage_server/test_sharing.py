"""Attempts that share the device of a stage server, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stage_server.data.consumer import Consumer
from wire.bundle import unpack
from wire.params import ImageParams
from wire.to_gateway import Fetched, Paused, Progress, StageCancelled, StageDone, Started
from wire.to_stage import Cancel, InputRef
from wire.types import REQUIRED, Epoch, Role

MakeBench = Callable[..., Any]
TOLERANCE = 2
"""Of 255."""
PATIENCE = 90.0
"""Seconds for a process that imports torch, and for its jobs."""


def job(seed: int, steps: int = 2, side: int = 64) -> ImageParams:
    return ImageParams(seed=seed, num_inference_steps=steps, height=side, width=side)


def of(epoch: Epoch) -> Callable[[Any], bool]:
    return lambda message: bool(message.epoch == epoch)


async def test_a_job_joins_another_midway_and_each_ends_by_itself(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(together=2)
    hello = await gateway.welcome()
    assert hello.limits == dict.fromkeys(REQUIRED, 3)
    first = await gateway.run(Role.DIT, params=job(1, steps=3), share=True)
    await gateway.expect(Started, of(first))
    bench.engine.open(1, 1)
    second = await gateway.run(Role.DIT, params=job(2, steps=1), share=True)
    await gateway.expect(Started, of(second))
    third = await gateway.run(Role.DIT, params=job(3, steps=1), share=True)
    bench.engine.open(2, 1)
    await gateway.expect(Started, of(third))  # perhaps before what the second made is published
    await gateway.done(second)
    await gateway.send(Cancel(epochs=(third,)))
    bench.engine.open(3, 1)
    await gateway.expect(StageCancelled, of(third))
    bench.engine.open(1, 2, 3)
    await gateway.expect(StageDone, of(first))


@pytest.mark.parametrize(
    ("options", "params"),
    [({}, job(2)), ({"share": True}, job(2, side=128)), ({"share": True, "preview": True}, job(2, side=128))],
)
async def test_other_work_and_exact_jobs_have_the_device_alone(
    options: dict[str, bool], params: ImageParams, gateway: Any, make_bench: MakeBench
) -> None:
    bench = make_bench(together=2)
    await gateway.welcome()
    first = await gateway.run(Role.DIT, params=job(1), share=True)
    await gateway.expect(Started, of(first))
    other = await gateway.run(Role.DIT, params=params, **options)
    bench.engine.open(2, 1, 2)
    await gateway.settle()
    assert not [message for message in gateway.seen if isinstance(message, Started) and message.epoch == other]
    bench.engine.open(1, 1, 2)
    await gateway.done(first)
    await gateway.done(other)


async def test_a_preempting_job_pauses_all_that_share(gateway: Any, make_bench: MakeBench) -> None:
    bench = make_bench(together=2)
    await gateway.welcome()
    epochs = [await gateway.run(Role.DIT, params=job(seed), share=True) for seed in (1, 2)]
    for _ in epochs:
        await gateway.expect(Started)
    urgent = await gateway.run(Role.DIT, params=job(3, steps=1), share=True, preempt=True)
    await gateway.expect(Fetched, of(urgent))  # it is in line
    for seed in (1, 2):
        bench.engine.open(seed, 1)
    paused = {(await gateway.expect(Paused)).epoch for _ in epochs}
    assert paused == set(epochs)
    await gateway.expect(Started, of(urgent))
    bench.engine.open(3, 1)
    await gateway.done(urgent)
    for seed, epoch in enumerate(epochs, 1):
        bench.engine.open(seed, 2)
        await gateway.done(epoch)
    assert bench.engine.order[:3] in ([(1, 1), (2, 1), (3, 1)], [(2, 1), (1, 1), (3, 1)])


@pytest.mark.services
async def test_with_the_settings_that_users_get(gateway: Any, start: Callable[..., Any]) -> None:
    """The bundled model in a process of its own: a job joins another's loop, leaves it, and both draw what they draw
    alone."""
    start("--role", "encoder,dit,decoder", "--model", "tiny-shapes", emulated=False)
    hello = await gateway.welcome(liveness=60, seconds=PATIENCE)
    assert hello.capable[Role.DIT].together > 1
    consumer = Consumer()

    def params(seed: int, steps: int) -> ImageParams:
        prompt = ("a red circle", "a blue star")[seed]
        return ImageParams(prompt=prompt, seed=seed, num_inference_steps=steps, height=256, width=256)

    def read(done: StageDone) -> InputRef:
        (output,) = done.outputs
        return InputRef(handle=output.handle, endpoint=hello.data_endpoint, nbytes=output.nbytes)

    async def picture(latents: StageDone, asked: ImageParams) -> np.ndarray:
        decoded = await gateway.done(await gateway.run(Role.DECODER, read(latents), params=asked))
        data = unpack(consumer.fetch(read(decoded), 30).result(30))["image"]
        assert isinstance(data, bytes)
        return np.asarray(Image.open(BytesIO(data)), dtype=int)

    asked = [params(0, 40), params(1, 6)]
    embedded = [read(await gateway.done(await gateway.run(Role.ENCODER, params=each))) for each in asked]
    alone = [
        await gateway.done(await gateway.run(Role.DIT, given, params=each), PATIENCE)
        for given, each in zip(embedded, asked, strict=True)
    ]
    first = await gateway.run(Role.DIT, embedded[0], params=asked[0], share=True)
    await gateway.expect(Progress, of(first))
    second = await gateway.run(Role.DIT, embedded[1], params=asked[1], share=True)
    joined = [await gateway.done(epoch, PATIENCE) for epoch in (second, first)][::-1]

    assert [done.timings.batch for done in alone] == [1, 1]
    assert 1 < joined[0].timings.batch < joined[1].timings.batch <= 2
    ends = [message.epoch for message in gateway.seen if isinstance(message, StageDone)]
    assert ends.index(second) < ends.index(first)
    for one, other, each in zip(alone, joined, asked, strict=True):
        assert np.abs(await picture(one, each) - await picture(other, each)).max() <= TOLERANCE
    consumer.close()
