"""Three engines, each with one role, draw exactly what the monolithic modular pipeline draws in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from diffusers import ModularPipeline
from PIL import Image

from stage_server.engine.diffusers_engine import DiffusersEngine
from tests.engine.both_ways import PROMPT, as_png, made_by_whole, picture
from wire.params import ImageParams
from wire.types import Role

SEED = 11

GUIDED = {"guidance_scale": 3.0, "negative_prompt": "a blue star"}
UNGUIDED = {"guidance_scale": 1.0}
CASES = [
    ("tiny-shapes", "text2image", GUIDED),
    ("tiny-shapes", "text2image", UNGUIDED),
    ("tiny-shapes", "image2image", GUIDED),
    ("tiny-shapes", "image2image", UNGUIDED),
    ("z-image", "text2image", GUIDED),
    ("z-image", "text2image", {}),
    ("z-image", "image2image", GUIDED),
    ("z-image", "image2image", {}),
    ("flux", "text2image", {"guidance_scale": 3.0}),
    ("flux", "text2image", UNGUIDED),
    ("flux", "image2image", {"guidance_scale": 3.0}),
    ("flux-kontext", "text2image", {"guidance_scale": 3.0}),
    ("flux-kontext", "image_conditioned", {"guidance_scale": 3.0}),
    ("flux2-dev", "text2image", {"guidance_scale": 3.0}),
    ("flux2-dev", "image_conditioned", {"guidance_scale": 3.0}),
    ("flux2-klein", "text2image", {}),
    ("flux2-klein", "image_conditioned", {}),
    ("flux2-klein-base", "text2image", {"guidance_scale": 3.0}),
    ("flux2-klein-base", "text2image", UNGUIDED),
    ("flux2-klein-base", "image_conditioned", {"guidance_scale": 3.0}),
    ("krea-2", "text2image", GUIDED),
    ("krea-2", "text2image", UNGUIDED),
    ("stable-diffusion-3", "text2image", GUIDED),
    ("stable-diffusion-3", "text2image", UNGUIDED),
    ("stable-diffusion-3", "image2image", GUIDED),
    ("stable-diffusion-3-t5", "text2image", GUIDED),
    ("stable-diffusion-xl", "text2image", GUIDED),
    ("stable-diffusion-xl", "text2image", {"guidance_scale": 3.0}),
    ("stable-diffusion-xl", "text2image", UNGUIDED),
    ("stable-diffusion-xl", "image2image", GUIDED),
    ("stable-diffusion-xl", "inpainting", GUIDED),
    ("qwen-image", "text2image", GUIDED),
    ("qwen-image", "text2image", UNGUIDED),
    ("qwen-image", "image2image", GUIDED),
    ("qwen-image", "inpainting", GUIDED),
    ("qwen-image-edit", "image_conditioned", GUIDED),
    pytest.param("qwen-image-edit", "image_conditioned", UNGUIDED, marks=pytest.mark.services),
    pytest.param("qwen-image-edit-plus", "image_conditioned", GUIDED, marks=pytest.mark.services),
]


def uploads(workflow: str) -> dict[str, Image.Image]:
    if workflow == "text2image":
        return {}
    mask = {"mask_image": picture("L")} if workflow == "inpainting" else {}
    return {"image": picture("RGB")} | mask


@pytest.mark.parametrize(("family", "workflow", "guidance"), CASES)
def test_split_equals_monolith(
    family: str,
    workflow: str,
    guidance: Mapping[str, Any],
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
    monolith: Callable[[str], ModularPipeline],
    generate: Callable[..., Image.Image],
) -> None:
    strength = {} if workflow in {"text2image", "image_conditioned"} else {"strength": 0.7}
    params = ImageParams(
        workflow=workflow,
        prompt=PROMPT,
        width=96,
        height=64,
        num_inference_steps=3,
        seed=SEED,
        **guidance,
        **strength,
    )
    images = uploads(workflow)

    ours = generate(split_engines(family), params, {name: as_png(image) for name, image in images.items()})

    theirs = made_by_whole(monolith(family), params, images)
    if "mask_image" in images:
        theirs = Image.composite(theirs, images["image"], images["mask_image"])
    assert ours.size == (96, 64)
    assert len(set(ours.tobytes())) > 10  # no constant picture, which would prove nothing
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.services
def test_qwen_image_edit_inpaints_as_the_monolith_at_the_size_that_it_would_choose(
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
    monolith: Callable[[str], ModularPipeline],
    generate: Callable[..., Image.Image],
) -> None:
    params = ImageParams(
        workflow="inpainting", prompt=PROMPT, width=1248, height=832, num_inference_steps=2, strength=0.7, **UNGUIDED
    )
    images = {"image": picture("RGB").resize((1248, 832)), "mask_image": picture("L").resize((1248, 832))}

    ours = generate(split_engines("qwen-image-edit"), params, {name: as_png(image) for name, image in images.items()})

    theirs = made_by_whole(monolith("qwen-image-edit"), params, images)
    assert ours.tobytes() == Image.composite(theirs, images["image"], images["mask_image"]).tobytes()


@pytest.mark.parametrize(
    ("family", "guidance"),
    [
        ("flux2-dev", {"guidance_scale": 3.0}),
        ("flux2-klein", {}),
        pytest.param("qwen-image-edit-plus", GUIDED, marks=pytest.mark.services),
    ],
)
def test_several_pictures_count_in_their_order(
    family: str,
    guidance: Mapping[str, Any],
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
    monolith: Callable[[str], ModularPipeline],
    generate: Callable[..., Image.Image],
) -> None:
    params = ImageParams(
        workflow="image_conditioned", prompt=PROMPT, width=64, height=64, num_inference_steps=1, seed=SEED, **guidance
    )
    first = picture("RGB")
    second = first.rotate(180).resize((64, 96))
    sent = {"image_1": as_png(second), "image": as_png(first)}  # names tell the order

    ours = generate(split_engines(family), params, sent)

    theirs = made_by_whole(monolith(family), params, {"image": [first, second]})
    assert ours.tobytes() == theirs.tobytes()
    assert ours.tobytes() != generate(split_engines(family), params, {"image": sent["image"]}).tobytes()
