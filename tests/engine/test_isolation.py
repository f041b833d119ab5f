"""Jobs of one engine leave nothing behind and take nothing from each other, whatever interleaves with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from stage_server.engine.base import EngineError, JobCancelled, OutOfMemory, Outputs, StageJob
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import Role
from wire.values import Tensor

PATIENCE = 240.0

Engines = Callable[[str], Mapping[Role, DiffusersEngine]]


def params(seed: int, **options: Any) -> ImageParams:
    given = {"prompt": "a green star", "width": 64, "height": 64, "num_inference_steps": 4} | options
    return ImageParams(seed=seed, **given)


def encoded(engines: Mapping[Role, DiffusersEngine], member: ImageParams, steps: type) -> dict[str, Any]:
    outputs = engines[Role.ENCODER].run(StageJob(Role.ENCODER, member), {}, steps())
    return dict(outputs[Role.DIT])


def latents(outputs: Outputs) -> bytes:
    tensor = outputs[Role.DECODER]["latents"]
    assert isinstance(tensor, Tensor)
    return bytes(tensor.data)


@pytest.mark.parametrize("family", ["tiny-shapes", "stable-diffusion-xl", "qwen-image"])
def test_a_parked_job_ends_as_if_nothing_had_run_meanwhile(family: str, split_engines: Engines, steps: type) -> None:
    """Traps 3 and 6: guider, scheduler and steps are a job's own; so is ``no_grad``, per thread."""
    engines = split_engines(family)
    dit = engines[Role.DIT]
    first, second = params(1, guidance_scale=4.0), params(2, guidance_scale=1.0, num_inference_steps=3, width=96)
    inputs = [encoded(engines, member, steps) for member in (first, second)]
    alone = [
        latents(dit.run(StageJob(Role.DIT, member), given, steps()))
        for member, given in zip((first, second), inputs, strict=True)
    ]
    parked, resume = threading.Event(), threading.Event()

    def park(step: int) -> None:
        if step == 2:
            parked.set()
            assert resume.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        outer = pool.submit(dit.run, StageJob(Role.DIT, first), inputs[0], steps(park))
        assert parked.wait(PATIENCE)
        inner = dit.run(StageJob(Role.DIT, second), inputs[1], steps())
        resume.set()
        assert latents(outer.result(PATIENCE)) == alone[0]
    assert latents(inner) == alone[1]


def test_cancelling_passes_through_and_leaves_nothing(split_engines: Engines, steps: type) -> None:
    engines = split_engines("tiny-shapes")
    dit = engines[Role.DIT]
    job = StageJob(Role.DIT, params(1))
    given = encoded(engines, job.params, steps)
    before = latents(dit.run(job, given, steps()))
    control_state = dict(vars(dit._pipeline))

    def cancel(step: int) -> None:
        if step == 2:
            raise JobCancelled

    control = steps(cancel)
    with pytest.raises(JobCancelled):
        dit.run(job, given, control)

    assert control.seen == [(1, 4), (2, 4)]
    assert vars(dit._pipeline) == control_state
    assert latents(dit.run(job, given, steps())) == before


def test_steps_are_reported_to_a_control_that_cannot_be_copied(split_engines: Engines, steps: type) -> None:
    """Trap 4: the hook is in the blocks that run, and no block or control is deep-copied (a lock would raise)."""
    lock = threading.Lock()

    def locked(_step: int) -> None:
        with lock:
            pass

    engines = split_engines("flux")
    control = steps(locked)
    member = params(1)
    engines[Role.DIT].run(StageJob(Role.DIT, member), encoded(engines, member, steps), control)
    assert control.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_gradients_on_a_thread_of_its_own(split_engines: Engines, steps: type) -> None:
    engines = split_engines("tiny-shapes")
    seen: list[bool] = []
    transformer = engines[Role.DIT]._pipeline.transformer
    hook = transformer.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    member = params(1)
    given = encoded(engines, member, steps)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(engines[Role.DIT].run, StageJob(Role.DIT, member), given, steps()).result(PATIENCE)
        assert pool.submit(torch.is_grad_enabled).result(PATIENCE)
    hook.remove()
    assert seen
    assert not any(seen)


def test_guidance_reaches_both_roles_and_not_the_model(split_engines: Engines, steps: type) -> None:
    """Trap 3: Z-Image's guider is off unless a job's guidance scale is above 1."""
    engines = split_engines("z-image")
    assert "negative_prompt_embeds" in encoded(engines, params(1, guidance_scale=2.0), steps)
    assert "negative_prompt_embeds" not in encoded(engines, params(1, guidance_scale=1.0), steps)
    assert "negative_prompt_embeds" not in encoded(engines, params(1), steps)
    assert not engines[Role.ENCODER]._pipeline.guider._enabled


def test_the_generator_goes_on_in_the_dit(split_engines: Engines, steps: type, png: bytes) -> None:
    """Trap 2: encoding an image draws from the generator, so its state crosses; text alone draws nothing."""
    engines = split_engines("z-image")
    member = params(5, workflow="image2image")
    job = StageJob(Role.ENCODER, member, {"image": png})
    outputs = engines[Role.ENCODER].run(job, {}, steps())
    state = outputs[Role.DIT]["generator"]
    assert isinstance(state, Tensor)
    assert bytes(state.data) != bytes(torch.Generator("cpu").manual_seed(5).get_state().numpy())
    assert "generator" not in encoded(engines, params(5), steps)

    other = StageJob(Role.DIT, params(6, workflow="image2image"))
    with pytest.raises(EngineError, match="drew from seed 5, this job has seed 6"):
        engines[Role.DIT].run(other, outputs[Role.DIT], steps())


def test_memory_errors_are_told_apart(split_engines: Engines, steps: type, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = split_engines("tiny-shapes")
    member = params(1)
    given = encoded(engines, member, steps)
    dit = engines[Role.DIT]

    def fail_with(error: Exception) -> None:
        def forward(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(dit._pipeline.transformer, "forward", forward)

    fail_with(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory, match="does not fit into the memory of cpu"):
        dit.run(StageJob(Role.DIT, member), given, steps())
    fail_with(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(EngineError, match="mat1 and mat2"):
        dit.run(StageJob(Role.DIT, member), given, steps())
    for unforeseen in (AssertionError("one mask per picture"), ZeroDivisionError("division by zero")):
        fail_with(unforeseen)
        with pytest.raises(EngineError, match=str(unforeseen)):
            dit.run(StageJob(Role.DIT, member), given, steps())
