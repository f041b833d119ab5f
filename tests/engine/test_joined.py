"""Jobs of every family that compute together: each draws its own picture, up to rounding."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from stage_server.engine.base import NamedValues, Outputs, StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.profiling.together import run_together
from wire.params import ImageParams
from wire.types import REQUIRED, Role

Engines = Mapping[Role, DiffusersEngine]

TOLERANCE = 2
"""Of 255, in float32."""
GUIDED = {"guidance_scale": 3.0}
FAMILIES = {
    "tiny-shapes": GUIDED,
    "z-image": GUIDED,
    "flux": GUIDED,
    "flux2-klein": {},
    "flux2-klein-base": GUIDED,
    "flux2-dev": GUIDED,
    "krea-2": GUIDED,
    "stable-diffusion-3": GUIDED,
    "stable-diffusion-xl": GUIDED,
    "qwen-image": GUIDED,
}
PROMPTS = ("a red circle", "a blue circle", "a green star", "a large yellow star in the center")


def asked(options: Mapping[str, Any], count: int = 4) -> list[ImageParams]:
    """Other prompts, seeds and numbers of steps."""
    return [
        ImageParams(prompt=PROMPTS[n], width=64, height=64, num_inference_steps=4 + n % 2, seed=n, **options)
        for n in range(count)
    ]


def inputs_of(role: Role, made: Sequence[Outputs]) -> NamedValues:
    return {name: value for outputs in made for name, value in outputs.get(role, {}).items()}


def pixels(outputs: Outputs) -> np.ndarray:
    picture = outputs["image"]["image"]
    assert isinstance(picture, bytes)
    return np.asarray(Image.open(io.BytesIO(picture)), dtype=int)


def drawn_alone(engines: Engines, params: ImageParams) -> Outputs:
    made: list[Outputs] = []
    for role in REQUIRED:
        made.append(engines[role].run(StageJob(role, params), inputs_of(role, made), Unwatched()))
    return made[-1]


def drawn_together(engines: Engines, several: Sequence[ImageParams]) -> list[Outputs]:
    made: list[list[Outputs]] = [[] for _ in several]
    for role in REQUIRED:
        jobs = [
            (StageJob(role, params, share=True), inputs_of(role, so_far))
            for params, so_far in zip(several, made, strict=True)
        ]
        for so_far, outputs in zip(made, run_together(engines[role], jobs)[0], strict=True):
            so_far.append(outputs)
    return [so_far[-1] for so_far in made]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_picture_is_its_own(family: str, split_engines: Callable[[str], Engines]) -> None:
    engines, several = split_engines(family), asked(FAMILIES[family])
    alone = [pixels(drawn_alone(engines, params)) for params in several]
    together = [pixels(outputs) for outputs in drawn_together(engines, several)]
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() <= TOLERANCE
    for first, second in pairwise(alone):
        assert np.abs(first - second).max() > TOLERANCE, "they could not be told apart"
    assert engines[Role.DIT]._port._plans, "no call was joined"
    assert engines[Role.DECODER]._port._plans


@pytest.mark.parametrize("family", FAMILIES)
def test_a_job_that_would_share_and_is_alone_is_bit_equal(
    family: str, split_engines: Callable[[str], Engines], payload: Callable[[object], bytes]
) -> None:
    engines, (params,) = split_engines(family), asked(FAMILIES[family], 1)
    assert payload(drawn_together(engines, [params])[0]) == payload(drawn_alone(engines, params))


def reference(width: int, height: int) -> bytes:
    picture = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def test_edits_have_their_own_positions(split_engines: Callable[[str], Engines]) -> None:
    """FLUX.2 reads one member's for all, and references of other shapes have as many tokens at other positions."""
    engines, wide, high = split_engines("flux2-klein"), reference(128, 64), reference(64, 128)
    alike = {"workflow": "image_conditioned", "prompt": PROMPTS[0]}  # prompts are not padded
    several = [msgspec.structs.replace(params, **alike) for params in asked({}, 3)]
    given = [{"image": wide}, {"image": wide}, {"image": high}]

    def jobs(role: Role, chosen: Sequence[int], share: bool) -> list[StageJob]:
        images = given if role is Role.ENCODER else [{}] * 3
        return [StageJob(role, several[n], images[n], share=share) for n in chosen]

    inputs = [engines[Role.ENCODER].run(job, {}, Unwatched())[Role.DIT] for job in jobs(Role.ENCODER, range(3), False)]
    alone = [
        engines[Role.DIT].run(job, each, Unwatched())
        for job, each in zip(jobs(Role.DIT, range(3), False), inputs, strict=True)
    ]
    for chosen in ((0, 1), (0, 2)):  # it is learned where positions are equal
        pairs = [(job, inputs[n]) for n, job in zip(chosen, jobs(Role.DIT, chosen, True), strict=True)]
        for n, outputs in zip(chosen, run_together(engines[Role.DIT], pairs)[0], strict=True):
            ours, expected = (each[Role.DECODER]["latents"].data for each in (outputs, alone[n]))
            assert np.allclose(np.frombuffer(ours, np.float32), np.frombuffer(expected, np.float32), atol=1e-3)


def test_guided_and_unguided_jobs_have_their_own_pictures(split_engines: Callable[[str], Engines]) -> None:
    """Their steps have two calls and one: they go on at their own pace."""
    engines = split_engines("z-image")
    several = [
        msgspec.structs.replace(params, guidance_scale=scale)
        for params, scale in zip(asked({}), (3.0, 1.0, 5.0, None), strict=True)
    ]
    alone = [pixels(drawn_alone(engines, params)) for params in several]
    together = [pixels(outputs) for outputs in drawn_together(engines, several)]
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() <= TOLERANCE
