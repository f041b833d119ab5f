"""Intermediate pictures: estimates of the final one, from different steps, which leave the final one as it is."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from PIL import Image

from stage_server.engine.base import StageJob
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.previews import preview_steps
from wire.types import Role

STEPS = 8
CASES = [
    ("tiny-shapes", "text2image", {"guidance_scale": 3.0}),
    ("tiny-shapes", "image2image", {"guidance_scale": 3.0, "strength": 0.9}),
    ("z-image", "text2image", {}),
    ("flux", "text2image", {"guidance_scale": 3.0}),
    ("flux2-klein", "text2image", {}),
    ("stable-diffusion-3", "text2image", {"guidance_scale": 3.0}),
    ("stable-diffusion-xl", "text2image", {"guidance_scale": 3.0}),
    ("flux", "inpainting", {"guidance_scale": 3.0, "strength": 0.9}),
    ("stable-diffusion-xl", "inpainting", {"guidance_scale": 3.0, "strength": 0.9}),
    ("qwen-image", "text2image", {"guidance_scale": 3.0}),
]


@pytest.mark.parametrize(
    ("steps", "previews", "expected"),
    [(12, 3, (3, 6, 9)), (50, 2, (17, 33)), (4, 3, (1, 2, 3)), (2, 3, (1,)), (1, 3, ()), (12, 0, ())],
)
def test_when_previews_are_made(steps: int, previews: int, expected: tuple[int, ...]) -> None:
    assert preview_steps(steps, previews) == expected


@pytest.mark.parametrize(("family", "workflow", "options"), CASES, ids=lambda value: str(value)[:30])
def test_previews_come_closer_and_change_nothing(
    family: str,
    workflow: str,
    options: Mapping[str, float],
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
    steps: Callable[[], object],
    png: bytes,
    payload: Callable[[object], bytes],
) -> None:
    engines = split_engines(family)
    info = engines[Role.DIT].describe()
    side = 256 if family == "tiny-shapes" else 4 * info.size_multiple
    params = ImageParams(
        workflow=workflow,
        prompt="a large red circle in the center on a white background",
        width=side,
        height=side,
        num_inference_steps=STEPS,
        seed=11,
        previews=3,
        **options,
    )
    inputs = next(each.inputs for each in info.workflows if each.name == workflow)
    images = {name: png for name in ("image", "mask_image") if name in inputs}
    encoded = engines[Role.ENCODER].run(StageJob(Role.ENCODER, params, images), {}, steps())
    shown, unseen = steps(), steps()
    denoised = engines[Role.DIT].run(StageJob(Role.DIT, params), encoded[Role.DIT], shown)
    plain = ImageParams(**{field: getattr(params, field) for field in params.__struct_fields__} | {"previews": 0})
    alone = engines[Role.DIT].run(StageJob(Role.DIT, plain), encoded[Role.DIT], unseen)
    assert payload(denoised) == payload(alone)
    assert unseen.previews == []
    assert [preview.index for preview in shown.previews] == [0, 1, 2]
    assert len({preview.step for preview in shown.previews}) == 3

    def decoded(values: Mapping[str, object]) -> np.ndarray:
        made = engines[Role.DECODER].run(
            StageJob(Role.DECODER, params, images if workflow == "inpainting" else {}),
            {**encoded.get(Role.DECODER, {}), **values},
            steps(),
        )
        return np.asarray(Image.open(io.BytesIO(made["image"]["image"])), dtype=float)

    final = decoded(denoised[Role.DECODER])
    distances = [float(np.abs(decoded(preview.values) - final).mean()) for preview in shown.previews]
    assert distances[-1] < distances[0]
    if family == "tiny-shapes":
        assert distances == sorted(distances, reverse=True), "each is closer to the final picture than the one before"
