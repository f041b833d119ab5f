"""Inpainting for families whose blocks only know image-to-image, and at the size asked for where they know it.

The derived workflow has image-to-image's blocks and three more: the encoder makes a mask of the size of the latents;
the denoiser sets what is kept back to the picture after every step, as noisy as that step left the rest.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, InsertableDict, OutputParam
from PIL import Image

from stage_server.engine.base import EngineError
from stage_server.engine.job_view import is_loop
from stage_server.engine.split import Part, WorkflowSplit, make_part
from wire.types import Role

SOURCE, INPAINTING = "image2image", "inpainting"

DEFAULT_STRENGTH = 1.0
"""image-to-image's own default is for pictures that shine through; here the rest of the picture is kept anyway."""

_KEEP, _NOISE = "keep_mask", "kept_noise"
_RESIZED = "resized_image"


def with_inpainting(workflows: Mapping[str, WorkflowSplit], scheduler: type | None) -> dict[str, WorkflowSplit]:
    """``workflows``, and inpainting made of image-to-image where it is missing and ``scheduler`` is one whose noise is
    understood."""
    if INPAINTING in workflows:
        return {**workflows, INPAINTING: _at_asked_size(workflows[INPAINTING])}
    source = workflows.get(SOURCE)
    if source is None or scheduler is not FlowMatchEulerDiscreteScheduler:
        return dict(workflows)
    return {**workflows, INPAINTING: _derived(source)}


def _at_asked_size(split: WorkflowSplit) -> WorkflowSplit:
    """Qwen-Image-Edit would encode the picture at a size of its own, which latents of the size asked for do not fit."""
    encoder = split.parts[Role.ENCODER]
    blocks = {
        name: ResizeToAsked() if name.startswith("vae_encoder.") and _makes(block, _RESIZED) else block
        for name, block in encoder.blocks.sub_blocks.items()
    }
    part = make_part(Role.ENCODER, SequentialPipelineBlocks.from_blocks_dict(blocks))
    return WorkflowSplit(split.name, {**split.parts, Role.ENCODER: part})


def _makes(block: ModularPipelineBlocks, name: str) -> bool:
    return any(output.name == name for output in block.intermediate_outputs)


def _derived(source: WorkflowSplit) -> WorkflowSplit:
    encoder, dit = source.parts[Role.ENCODER], source.parts[Role.DIT]
    masked = {**encoder.blocks.sub_blocks, "keep_mask": MakeKeepMask()}
    return WorkflowSplit(
        INPAINTING,
        {
            Role.ENCODER: make_part(Role.ENCODER, SequentialPipelineBlocks.from_blocks_dict(masked)),
            Role.DIT: _with_strength(make_part(Role.DIT, _keeping(dit.blocks))),
            Role.DECODER: source.parts[Role.DECODER],
        },
    )


def _keeping(blocks: SequentialPipelineBlocks) -> SequentialPipelineBlocks:
    """A copy of the dit's blocks; image-to-image goes on with the originals."""
    changed: dict[str, ModularPipelineBlocks] = {}
    for name, block in blocks.sub_blocks.items():
        if is_loop(block):
            changed["denoise.kept_noise"] = RecallNoise()
            block = _keeping_loop(block)
        changed[name] = block
    return SequentialPipelineBlocks.from_blocks_dict(changed)


def _keeping_loop(loop: ModularPipelineBlocks) -> ModularPipelineBlocks:
    keeping = copy.copy(loop)
    keeping.sub_blocks = InsertableDict([*loop.sub_blocks.items(), ("keep_rest", KeepRest())])
    return keeping


def _with_strength(part: Part) -> Part:
    inputs = (
        dataclasses.replace(param, default=DEFAULT_STRENGTH) if param.name == "strength" else param
        for param in part.inputs
    )
    return dataclasses.replace(part, inputs=tuple(inputs))


class ResizeToAsked(ModularPipelineBlocks):  # type: ignore[misc]  # diffusers publishes no types
    """The picture at the size of the result."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam(name, required=True) for name in ("image", "width", "height")]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam(_RESIZED, type_hint=list[Image.Image])]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        size = state.get("width"), state.get("height")
        state.set(_RESIZED, [state.get("image").resize(size, Image.Resampling.LANCZOS)])
        return components, state


class MakeKeepMask(ModularPipelineBlocks):  # type: ignore[misc]
    """The mask, averaged to the size of the latents: 1 where the picture is kept, 0 where it is drawn anew."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam("mask_image", required=True), InputParam("image_latents", required=True)]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam(_KEEP, type_hint=torch.Tensor)]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        latents = state.get("image_latents")
        if latents.dim() != 4:
            raise EngineError(f"the picture's latents have the shape {tuple(latents.shape)}, not [1, channels, y, x]")
        edited = torch.from_numpy(np.array(state.get("mask_image"), dtype=np.float32) / 255)
        edited = torch.nn.functional.adaptive_avg_pool2d(edited[None, None], latents.shape[-2:])
        state.set(_KEEP, 1 - edited)
        return components, state


class RecallNoise(ModularPipelineBlocks):  # type: ignore[misc]
    """The noise that the latents begin with. What is kept gets the same: a soft mask would thin out two that differ."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam("latents", required=True), InputParam("image_latents", required=True)]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam(_NOISE, type_hint=torch.Tensor)]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        scheduler = components.scheduler
        sigma = float(scheduler.sigmas[scheduler.begin_index or 0])
        image = state.get("image_latents").float()
        state.set(_NOISE, (state.get("latents").float() - (1 - sigma) * image) / sigma)
        return components, state


class KeepRest(ModularPipelineBlocks):  # type: ignore[misc]
    """Last sub-block of a denoising loop: what the mask keeps is the picture again, with this step's noise."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam(name, required=True) for name in (_KEEP, _NOISE, "image_latents")]

    def __call__(self, components: Any, block_state: Any, **_: Any) -> tuple[Any, Any]:
        scheduler = components.scheduler
        sigma = float(scheduler.sigmas[scheduler.step_index])  # 0 after the last step
        noised = (1 - sigma) * block_state.image_latents.float() + sigma * block_state.kept_noise
        latents = block_state.latents
        keep = _like(block_state.keep_mask, latents)
        block_state.latents = torch.lerp(latents.float(), noised, keep).to(latents.dtype)
        return components, block_state


def _like(keep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """The mask in a form that spreads over ``latents``: [1, 1, y, x], or [1, tokens, 1] where squares are packed."""
    if latents.dim() == 4:
        return keep.expand_as(latents)
    side = math.isqrt(keep.numel() // latents.shape[1])
    tokens = torch.nn.functional.avg_pool2d(keep, side).reshape(1, -1, 1)
    return tokens.expand_as(latents)
