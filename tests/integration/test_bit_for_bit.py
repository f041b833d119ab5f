"""Through a gateway and two stage servers, every family draws the very pixels of the monolith in one process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import ModularPipeline
from PIL import Image

from gateway.service.interfaces import ImageRequest
from stage_server.engine.checkpoint import BUNDLED
from tests.engine.both_ways import PROMPT, as_png, made_by_whole
from tests.engine.families import build
from tests.engine.test_bit_for_bit import CASES, SEED, uploads
from wire.params import ImageParams
from wire.types import REQUIRED, Role

FAMILIES = (
    "tiny-shapes",
    "z-image",
    "flux",
    "flux2-klein",
    "stable-diffusion-3",
    "stable-diffusion-xl",
    "qwen-image",
)
"""The Z-Image model has a VAE factor of 16."""


@pytest.fixture(autouse=True)
def one_thread():
    """As many as the stage servers have: sums in another order would differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def settings(settings):
    """The test itself computes where its gateway runs, and so leaves it no time to listen."""
    return settings.model_copy(update={"liveness_seconds": 60.0})


def monolith(folder: str) -> ModularPipeline:
    pipeline = ModularPipeline.from_pretrained(folder)
    pipeline.load_components(dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def parameters(workflow: str, guidance: Mapping[str, Any]) -> ImageParams:
    strength = {} if workflow in {"text2image", "image_conditioned"} else {"strength": 0.7}
    size = {"width": 96, "height": 64, "num_inference_steps": 3}
    return ImageParams(workflow=workflow, prompt=PROMPT, seed=SEED, **size, **guidance, **strength)


async def test_a_role_is_warmed_up_with_what_the_others_made_on_other_servers(service):
    """What was made of a guess is told to nobody: so the forms say how each was warmed up."""
    folder = str(BUNDLED / "tiny-shapes")
    for role in REQUIRED:
        await service.serve(role, role, model=folder)
    (server, *_) = service.gateway.pool.vitals()
    assert service.gateway.pool._roster.forms(server).keys() == set(REQUIRED)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.services] * (name != "tiny-shapes")) for name in FAMILIES]
)
async def test_pixels_equal_the_monolith(service, family, tmp_path):
    folder = str(BUNDLED / family) if family == "tiny-shapes" else str(build(family, tmp_path))
    ends = service.serve("ends", Role.ENCODER, Role.DECODER, model=folder)
    await asyncio.gather(ends, service.serve("middle", Role.DIT, model=folder))
    (model,) = service.gateway.dispatcher.models()
    pipeline = monolith(folder)
    for number, (_, workflow, guidance) in enumerate(case for case in CASES if case[0] == family):
        params, images = parameters(workflow, guidance), uploads(workflow)
        pictures = {name: as_png(image) for name, image in images.items()}
        request = ImageRequest(f"r{number}", model.name, (params,), 60.0, uploads=pictures)
        finished = await service.gateway.dispatcher.generate(request)
        assert {stage.server for stage in finished.stages if stage.role == Role.DIT} == {"middle"}
        ours = Image.open(io.BytesIO(finished.images[0]))
        theirs = made_by_whole(pipeline, params, images)
        if "mask_image" in images:  # what the mask keeps is put back as it was sent
            theirs = Image.composite(theirs, images["image"], images["mask_image"])
        assert ours.tobytes() == theirs.tobytes(), (workflow, guidance)
