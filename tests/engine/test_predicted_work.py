"""What is predicted of an edit is what is computed: the features of its jobs are the sizes of the tensors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image

from gateway.service import graph
from gateway.service.interfaces import ImageRequest
from scheduler.cost.features import row
from scheduler.cost.profile import ModelShape
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.to_stage import InputRef
from wire.types import Handle, Role

Engines = Mapping[Role, DiffusersEngine]
Spy = tuple[list[int], list[int], list[int]]


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def watched(engines: Engines) -> Iterator[Spy]:
    """A call each: pixels that the VAE encodes, tokens of the denoiser's pictures, tokens of pictures in a prompt."""
    pixels: list[int] = []
    tokens: list[int] = []
    prompt: list[int] = []
    encoder, denoiser = engines[Role.ENCODER]._pipeline, engines[Role.DIT]._pipeline.transformer
    vae, reader = encoder.vae, encoder.text_encoder
    encode = vae.encode

    def encoded(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        pixels.append(x.shape[-1] * x.shape[-2])
        return encode(x, *args, **options)

    def denoised(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        tokens.append(options["hidden_states"].shape[1])

    def read(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        prompt.append(int((options["input_ids"] == reader.config.image_token_id).sum()))

    hooks = [denoiser.register_forward_pre_hook(denoised, with_kwargs=True)]
    if "processor" in encoder.components:
        hooks.append(reader.register_forward_pre_hook(read, with_kwargs=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "encode", encoded)
        yield pixels, tokens, prompt
    for hook in hooks:
        hook.remove()


def predicted(engines: Engines, params: ImageParams, images: Mapping[str, bytes]) -> tuple[int, int, int]:
    """Pixels to encode, tokens of the dit, and those that pictures add to the prompt."""
    info = engines[Role.DIT].describe()
    request = ImageRequest("r", info.name, (params,), 60.0, uploads=images)
    refs = {name: InputRef(handle=Handle(name), endpoint="tcp://127.0.0.1:1") for name in images}
    works = {job.role: job.work for job in graph.build(request, info, 60.0, refs).spec.jobs}
    shape = ModelShape(info.name, pixels_per_token=engines[Role.DIT].token_pixels)
    pictures = works[Role.DIT].picture_tokens
    assert works[Role.ENCODER].picture_tokens == pictures
    return int(row(works[Role.ENCODER], shape)[2]), int(row(works[Role.DIT], shape)[1]) - pictures, pictures


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("flux", [(96, 64)]),
        ("flux-kontext", [(96, 64)]),
        ("flux-kontext", [(1000, 1007)]),  # square, once its sides are multiples of 16
        ("flux2-dev", [(97, 64), (128, 200)]),
        ("flux2-klein", [(1536, 1000)]),
        ("qwen-image", [(96, 64)]),
        ("qwen-image-edit", [(97, 64)]),
        pytest.param("qwen-image-edit-plus", [(97, 64), (64, 64)], marks=pytest.mark.services),
    ],
)
def test_features_are_the_sizes_of_tensors(
    family: str,
    sizes: list[tuple[int, int]],
    split_engines: Callable[[str], Engines],
    generate: Callable[..., Image.Image],
) -> None:
    engines = split_engines(family)
    images = {f"image_{index}" if index else "image": png(*size) for index, size in enumerate(sizes)}
    known = [workflow.name for workflow in engines[Role.DIT].describe().workflows]
    workflow = "image_conditioned" if "image_conditioned" in known else "image2image"
    strength = {} if workflow == "image_conditioned" else {"strength": 1.0}
    unguided = {"guidance_scale": 1.0} if family.startswith("qwen") else {}
    params = ImageParams(
        workflow=workflow, prompt="a star", width=64, height=96, num_inference_steps=1, **strength, **unguided
    )

    with watched(engines) as (pixels, tokens, prompt):
        generate(engines, params, images)

    encoded, sequence, in_prompt = predicted(engines, params, images)
    assert encoded == sum(pixels)
    assert [sequence] == tokens
    assert in_prompt == pytest.approx(sum(prompt), rel=0.06)  # a row and a column of each may be rounded otherwise
    assert bool(in_prompt) == family.startswith("qwen-image-edit")
