"""Denoising that stops on one engine and goes on on another gives the latents of an undisturbed run, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from stage_server.engine.base import STEP, HandOver, StageJob, Unfinished
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.bundle import Bundle, pack, unpack
from wire.params import ImageParams
from wire.types import Role

STEPS = 6
GUIDED = {"guidance_scale": 3.0, "negative_prompt": "a blue star"}
CASES = [
    ("tiny-shapes", "text2image", GUIDED),
    ("tiny-shapes", "image2image", GUIDED),
    ("z-image", "text2image", {}),
    ("flux", "text2image", {"guidance_scale": 3.0}),
    ("flux", "image2image", {"guidance_scale": 3.0}),
    ("flux-kontext", "image_conditioned", {"guidance_scale": 3.0}),
    ("flux2-dev", "text2image", {"guidance_scale": 3.0}),
    ("flux2-klein", "image_conditioned", {}),
    ("flux2-klein-base", "text2image", {"guidance_scale": 3.0}),
    ("krea-2", "text2image", GUIDED),
    ("stable-diffusion-3", "text2image", GUIDED),
    ("stable-diffusion-xl", "text2image", GUIDED),
    ("stable-diffusion-xl", "inpainting", GUIDED),
    ("anima", "text2image", GUIDED),
    ("flux-3", "image_conditioned", GUIDED),
    ("ideogram-4", "text2image", {"max_sequence_length": 64}),
    pytest.param("ernie-image", "text2image", GUIDED, marks=pytest.mark.services),
    pytest.param("krea-2-turbo", "text2image", {}, marks=pytest.mark.services),
    pytest.param("ltx", "text2video", GUIDED | {"num_frames": 9}, marks=pytest.mark.services),
    ("qwen-image", "text2image", GUIDED),
    ("qwen-image", "inpainting", GUIDED),
    pytest.param("qwen-image-edit", "image_conditioned", GUIDED, marks=pytest.mark.services),
    pytest.param("qwen-image-edit-plus", "image_conditioned", GUIDED, marks=pytest.mark.services),
]
Engines = Callable[[str], Mapping[Role, DiffusersEngine]]


def crossed(values: Mapping[str, Any]) -> Bundle:
    """As another server receives them."""
    bundle = pack(values)
    payload = bytes(bundle.view(0, bundle.nbytes)) if bundle.nbytes else b""
    return Bundle(bundle.header, bundle.nbytes, ((0, memoryview(payload)),))


def stop_after(steps: type, step: int) -> Any:
    def then(done: int) -> None:
        if done == step:
            raise HandOver

    return steps(then)


@pytest.mark.parametrize(("family", "workflow", "options"), CASES)
def test_goes_on_to_the_bit(
    split_engines: Engines, steps: type, png: bytes, family: str, workflow: str, options: dict[str, Any]
) -> None:
    engines = split_engines(family)
    params = ImageParams(
        workflow=workflow, prompt="a red circle", height=64, width=96, num_inference_steps=STEPS, seed=5, **options
    )
    images = (
        {}
        if workflow.startswith("text2")
        else {"image": png, **({"mask_image": png} if workflow == "inpainting" else {})}
    )
    given = engines[Role.ENCODER].run(StageJob(Role.ENCODER, params, images), {}, steps())[Role.DIT]
    job, dit = StageJob(Role.DIT, params, images), engines[Role.DIT]
    whole = steps()
    expected = crossed(dit.run(job, given, whole)[Role.DECODER])
    total = whole.seen[-1][1]
    each, before = divmod(len(whole.company), total)  # anima conditions its prompt before the first step
    for stop in {1, total // 2, total - 1} - {0}:
        with pytest.raises(Unfinished) as left:
            dit.run(job, given, stop_after(steps, stop))
        assert left.value.values[STEP] == stop
        resumed = StageJob(Role.DIT, params, images, resume=unpack(crossed(left.value.values)))
        rest = steps()
        assert crossed(dit.run(resumed, given, rest)[Role.DECODER]) == expected
        assert rest.seen == whole.seen[stop:], "no step is told twice"
        assert len(rest.company) == before + (total - stop) * each, "nor computed twice"


@pytest.mark.services
def test_a_loop_that_remembers_its_first_step_is_offered_to_nobody(split_engines: Engines) -> None:
    assert not split_engines("qwen-image-2.1")[Role.DIT].software
    assert split_engines("tiny-shapes")[Role.DIT].software
