"""Three engines, each with one role, draw exactly what the monolithic modular pipeline draws in one process."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ModularPipeline
from PIL import Image

from stage_server.engine.checkpoint import BUNDLED
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import Role

PROMPT = "a large red circle in the center on a white background"
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


def picture(mode: str) -> Image.Image:
    ramp = np.arange(96 * 64 * 3, dtype=np.uint32) * 2654435761 % 251
    return Image.fromarray(ramp.astype(np.uint8).reshape(64, 96, 3)).convert(mode)


def uploads(workflow: str) -> dict[str, Image.Image]:
    if workflow == "text2image":
        return {}
    mask = {"mask_image": picture("L")} if workflow == "inpainting" else {}
    return {"image": picture("RGB")} | mask


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def monolith(model_folder: Callable[[str], str]) -> Callable[[str], ModularPipeline]:
    loaded: dict[str, ModularPipeline] = {}

    def load(family: str) -> ModularPipeline:
        if family not in loaded:
            folder = model_folder(family)
            pipeline = ModularPipeline.from_pretrained(str(BUNDLED / folder) if folder == "tiny-shapes" else folder)
            pipeline.load_components(dtype=torch.float32)
            pipeline.set_progress_bar_config(disable=True)
            loaded[family] = pipeline
        return loaded[family]

    return load


def reference(pipeline: ModularPipeline, params: ImageParams, images: Mapping[str, Any]) -> Image.Image:
    names = {param.name for param in pipeline.blocks.inputs}
    given: dict[str, Any] = {
        name: value
        for name in (
            "prompt",
            "negative_prompt",
            "height",
            "width",
            "num_inference_steps",
            "guidance_scale",
            "strength",
        )
        if name in names and (value := getattr(params, name)) is not None
    }
    scale = params.guidance_scale
    if getattr(pipeline, "guider", None) is not None:
        guider = pipeline.get_component_spec("guider").create()
        pipeline.guider = guider if scale is None else guider.new(guidance_scale=scale, enabled=scale > 1)
    if "max_area" in names:
        given["max_area"] = params.width * params.height
    generator = torch.Generator("cpu").manual_seed(params.seed)
    result: list[Image.Image] = pipeline(**given, **images, generator=generator, output="images")
    return result[0]


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

    theirs = reference(monolith(family), params, images)
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

    theirs = reference(monolith("qwen-image-edit"), params, images)
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

    theirs = reference(monolith(family), params, {"image": [first, second]})
    assert ours.tobytes() == theirs.tobytes()
    assert ours.tobytes() != generate(split_engines(family), params, {"image": sent["image"]}).tobytes()
