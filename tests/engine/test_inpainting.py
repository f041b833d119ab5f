"""Edits within a mask: what lies outside comes back as sent, in families with inpainting of their own or without."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from stage_server.engine.base import BadJob, StageJob
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.inpainting import with_inpainting
from stage_server.engine.tensors import from_wire
from wire.params import ImageParams
from wire.types import Role

Engines = Mapping[Role, DiffusersEngine]
Generate = Callable[..., Image.Image]
Pixels = npt.NDArray[np.int64]

CIRCLE = "a large red circle in the center on a white background"
WHITE = 255
EVERY_FAMILY = [
    "z-image",
    "flux",
    "stable-diffusion-3",
    "stable-diffusion-3-t5",
    "stable-diffusion-xl",
    "qwen-image",
    "qwen-image-edit",
]


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(np.int64)


def right_half(size: int, edit: int = WHITE) -> Image.Image:
    mask = Image.new("L", (size, size))
    mask.paste(edit, (size // 2, 0, size, size))
    return mask


def uploads(image: Image.Image, mask: Image.Image) -> dict[str, bytes]:
    return {"image": as_png(image), "mask_image": as_png(mask)}


def edit(**options: Any) -> ImageParams:
    given: dict[str, Any] = {"width": 256, "height": 256, "seed": 5, "num_inference_steps": 8} | options
    return ImageParams(workflow="inpainting", **given)


@pytest.fixture(scope="module")
def bundled(split_engines: Callable[[str], Engines]) -> Engines:
    return split_engines("tiny-shapes")


@pytest.fixture(scope="module")
def circle(bundled: Engines, generate: Generate) -> Image.Image:
    params = ImageParams(prompt=CIRCLE, width=256, height=256, seed=1, num_inference_steps=8)
    return generate(bundled, params)


def test_what_the_mask_keeps_comes_back_as_it_was_sent(
    bundled: Engines, generate: Generate, circle: Image.Image
) -> None:
    params = edit(prompt="a large red circle in the center on a black background")

    drawn = generate(bundled, params, uploads(circle, right_half(256)))

    before, after = pixels(circle), pixels(drawn)
    assert (after[:, :128] == before[:, :128]).all()
    corner_before, corner_after = before[:48, 208:].mean(), after[:48, 208:].mean()
    assert corner_before > 200 > 100 > corner_after  # the white background, drawn anew, is black
    assert generate(bundled, params, uploads(circle, right_half(256))).tobytes() == drawn.tobytes()


def test_the_drawn_half_goes_on_with_the_kept_one(bundled: Engines, generate: Generate, circle: Image.Image) -> None:
    """With the same prompt the shape is completed: the denoiser sees the kept half, as noisy as its own."""
    holed = circle.copy()
    holed.paste((120, 120, 120), (128, 0, 256, 256))

    drawn = generate(bundled, edit(prompt=CIRCLE), uploads(holed, right_half(256)))

    error = np.abs(pixels(drawn) - pixels(circle))[:, 128:].mean()
    assert error < np.abs(pixels(holed) - pixels(circle))[:, 128:].mean() / 2


def test_the_more_a_soft_mask_edits_the_less_is_kept(bundled: Engines, generate: Generate, circle: Image.Image) -> None:
    def change(edited: int) -> float:
        drawn = generate(
            bundled, edit(prompt="a small blue star on a black background"), uploads(circle, right_half(256, edited))
        )
        return float(np.abs(pixels(drawn) - pixels(circle))[:, 128:].mean())

    changes = [change(edited) for edited in (0, 64, 128, 192, WHITE)]

    assert changes[0] == 0
    assert changes == sorted(changes)
    assert changes[-1] > 2 * changes[2]


def test_an_empty_mask_gives_the_picture_at_another_size(
    bundled: Engines, generate: Generate, circle: Image.Image
) -> None:
    params = edit(prompt="a star", width=128, height=128, num_inference_steps=1)

    drawn = generate(bundled, params, uploads(circle, Image.new("L", (64, 64))))

    assert drawn.tobytes() == circle.resize((128, 128), Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_keeps_and_draws(
    family: str, split_engines: Callable[[str], Engines], generate: Generate, circle: Image.Image
) -> None:
    small = circle.resize((64, 64))
    params = edit(prompt="a blue star", width=64, height=64, num_inference_steps=3, strength=0.7)

    drawn = generate(split_engines(family), params, uploads(small, right_half(64)))

    before, after = pixels(small), pixels(drawn)
    assert (after[:, :32] == before[:, :32]).all()
    assert np.abs(after - before)[:, 32:].mean() > 5


@pytest.mark.parametrize("family", ["z-image", "flux", "stable-diffusion-3"])
def test_kept_latents_end_as_those_of_the_picture(
    family: str, split_engines: Callable[[str], Engines], circle: Image.Image, steps: type
) -> None:
    """Whatever was drawn beside them, and though packed latents have another shape than the mask."""
    engines = split_engines(family)
    params = edit(prompt="a blue star", width=64, height=64, num_inference_steps=3)
    job = StageJob(Role.ENCODER, params, uploads(circle.resize((64, 64)), right_half(64)))
    encoded = engines[Role.ENCODER].run(job, {}, steps())
    finished = engines[Role.DIT].run(StageJob(Role.DIT, params), encoded[Role.DIT], steps())

    drawn = from_wire(finished[Role.DECODER]["latents"], lambda tensor: tensor)
    kept = from_wire(encoded[Role.DIT]["image_latents"], lambda tensor: tensor)

    half = kept.shape[3] // 2
    assert torch.equal(drawn[..., :half], kept[..., :half])
    assert not torch.isclose(drawn[..., half:], kept[..., half:]).any()


def test_the_decoder_needs_the_pictures_too(bundled: Engines) -> None:
    with pytest.raises(BadJob, match="inpainting needs image and mask_image"):
        bundled[Role.DECODER].output_bound(StageJob(Role.DECODER, edit(prompt="a star")))


def test_a_scheduler_whose_noise_is_not_understood_gets_no_inpainting(bundled: Engines) -> None:
    own = {name: split for name, split in bundled[Role.DIT]._workflows.items() if name != "inpainting"}

    assert "inpainting" in with_inpainting(own, FlowMatchEulerDiscreteScheduler)
    assert with_inpainting(own, EulerDiscreteScheduler) == own
