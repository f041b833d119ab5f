"""What is asked for: the right picture, in the right format, or a clear refusal."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from PIL import Image

from stage_server.engine.base import BadJob, StageJob
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import Role

Engines = Callable[[str], Mapping[Role, DiffusersEngine]]
Generate = Callable[..., Image.Image]


def test_the_bundled_model_draws_what_the_prompt_says(split_engines: Engines, generate: Generate) -> None:
    prompt = "a large red circle in the center on a white background"
    params = ImageParams(prompt=prompt, width=256, height=256, num_inference_steps=12, guidance_scale=3.0, seed=5)
    picture = generate(split_engines("tiny-shapes"), params)
    red, green, blue = picture.getpixel((128, 128))
    assert red > 180
    assert max(green, blue) < 90
    for corner in ((4, 4), (251, 4), (4, 251), (251, 251)):
        assert min(picture.getpixel(corner)) > 220


def test_defaults_of_the_model_fill_what_a_request_leaves_out(split_engines: Engines, generate: Generate) -> None:
    engines = split_engines("tiny-shapes")
    info = engines[Role.DIT].describe()
    assert (info.default_size, info.default_steps, info.default_guidance) == ((256, 256), 12, 3.0)
    short = generate(engines, ImageParams(prompt="a blue square", seed=1))
    full = generate(
        engines,
        ImageParams(prompt="a blue square", seed=1, width=256, height=256, num_inference_steps=12, guidance_scale=3.0),
    )
    assert short.tobytes() == full.tobytes()


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_decoder_ends_with_an_encoded_picture(
    name: str, kind: str, split_engines: Engines, generate: Generate
) -> None:
    params = ImageParams(
        prompt="a star", width=96, height=64, num_inference_steps=1, output_format=name, output_compression=60
    )
    picture = generate(split_engines("tiny-shapes"), params)
    assert (picture.format, picture.size) == (kind, (96, 64))


@pytest.mark.parametrize(
    ("family", "asked", "message"),
    [
        ("tiny-shapes", {"width": 72}, "width must be a positive multiple of 32 for tiny-shapes, not 72"),
        ("tiny-shapes", {"height": -32}, "height must be a positive multiple of 32"),
        ("tiny-shapes", {"width": 2048, "height": 1024}, "more than the 1572864 pixels"),
        ("z-image", {"width": 48}, "multiple of 32"),
        ("flux", {"width": 72}, "multiple of 16"),
        ("stable-diffusion-xl", {"width": 60}, "multiple of 8"),
        ("tiny-shapes", {"num_inference_steps": 0}, "num_inference_steps must be at least 1, not 0"),
        ("tiny-shapes", {"strength": 0.5}, "strength has no effect on tiny-shapes in text2image"),
        ("tiny-shapes", {"workflow": "image2image", "strength": 1.5}, "strength must be above 0 and at most 1"),
        ("tiny-shapes", {"workflow": "image2image"}, "image2image needs image"),
        (
            "stable-diffusion-xl",
            {"workflow": "image2image", "num_inference_steps": 3, "images": ["image"]},
            "3 × 0.3 leaves no step",
        ),
        (
            "flux2-klein",
            {"workflow": "inpainting"},
            "cannot do 'inpainting'; it can do text2image, image_conditioned",
        ),
        ("tiny-shapes", {"max_sequence_length": 0}, "max_sequence_length must be from 1 to 1024, not 0"),
        ("flux", {"negative_prompt": "blur"}, "negative_prompt has no effect"),
        ("flux2-klein", {"guidance_scale": 3.0}, "guidance_scale has no effect"),
        ("stable-diffusion-xl", {"max_sequence_length": 10}, "max_sequence_length has no effect"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    family: str, asked: dict[str, Any], message: str, split_engines: Engines, steps: type, png: bytes
) -> None:
    """Trap 7: diffusers only warns about inputs that blocks do not read."""
    images = dict.fromkeys(asked.get("images", []), png)
    job = StageJob(
        Role.ENCODER,
        ImageParams(
            **({"prompt": "a star", "width": 64, "height": 64} | {k: v for k, v in asked.items() if k != "images"})
        ),
        images,
    )
    encoder = split_engines(family)[Role.ENCODER]
    with pytest.raises(BadJob, match=message):
        encoder.run(job, {}, steps())
    with pytest.raises(BadJob, match=message):
        encoder.output_bound(job)


@pytest.mark.parametrize(
    "family", ["z-image", "flux", "flux2-klein-base", "stable-diffusion-3", "stable-diffusion-xl", "qwen-image"]
)
def test_the_longest_prompt_stays_within_the_bound(
    family: str, split_engines: Engines, steps: type, payload: Callable[[Any], bytes]
) -> None:
    encoder = split_engines(family)[Role.ENCODER]
    job = StageJob(Role.ENCODER, ImageParams(prompt="red circle " * 1000, width=64, height=64, guidance_scale=3.0))
    outputs = encoder.run(job, {}, steps())
    size = len(payload(outputs))
    assert size <= encoder.output_bound(job) <= 5 * size + (64 << 10)


def test_unreadable_and_unexpected_pictures_are_refused(split_engines: Engines, steps: type, png: bytes) -> None:
    encoder = split_engines("tiny-shapes")[Role.ENCODER]
    edit = ImageParams(workflow="image2image", prompt="a star", width=64, height=64)
    with pytest.raises(BadJob, match="image is not a readable picture"):
        encoder.run(StageJob(Role.ENCODER, edit, {"image": b"no picture"}), {}, steps())
    with pytest.raises(BadJob, match="mask_image has no effect"):
        encoder.run(StageJob(Role.ENCODER, edit, {"image": png, "mask_image": png}), {}, steps())


@pytest.mark.parametrize(
    ("family", "workflow"), [("tiny-shapes", "image2image"), ("flux-kontext", "image_conditioned")]
)
def test_more_pictures_than_a_family_takes_are_refused(
    family: str, workflow: str, split_engines: Engines, png: bytes
) -> None:
    edit = ImageParams(workflow=workflow, prompt="a star", width=64, height=64)
    pictures = {"image": png, "image_1": png}
    with pytest.raises(BadJob, match=f"{workflow} with .* takes 1 of the 2 pictures"):
        split_engines(family)[Role.ENCODER].output_bound(StageJob(Role.ENCODER, edit, pictures))


def test_an_unknown_format_is_refused(split_engines: Engines, generate: Generate) -> None:
    params = ImageParams(prompt="a star", width=64, height=64, num_inference_steps=1, output_format="gif")
    with pytest.raises(BadJob, match="'gif' is not one of png, jpeg, webp"):
        generate(split_engines("tiny-shapes"), params)


def test_uploads_are_turned_upright(split_engines: Engines, generate: Generate) -> None:
    sideways = Image.linear_gradient("L").convert("RGB").resize((64, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned, upright = io.BytesIO(), io.BytesIO()
    sideways.save(turned, "PNG", exif=exif)
    sideways.transpose(Image.Transpose.ROTATE_270).save(upright, "PNG")
    params = ImageParams(
        workflow="image2image", prompt="a star", width=96, height=64, num_inference_steps=2, strength=0.5
    )
    engines = split_engines("tiny-shapes")
    drawn = [generate(engines, params, {"image": file.getvalue()}).tobytes() for file in (turned, upright)]
    assert drawn[0] == drawn[1]
