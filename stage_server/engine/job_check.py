"""What a job asks for, completed with the model's defaults and held against what the model can do."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from stage_server.engine import controls, guiders
from stage_server.engine.base import BadJob
from stage_server.engine.pictures import is_control, is_reference
from wire.guiders import GUIDERS
from wire.params import ImageParams, ModelInfo, Workflow
from wire.types import Role

_OPTIONAL = ("negative_prompt", "guidance_scale", "strength", "max_sequence_length")
"""Parameters that some workflows do not read: naming one where it would be ignored is an error."""

_MAX_TOKENS = 1024
"""The longest prompt that any family takes; some take less, and say so themselves."""


def complete(params: ImageParams, info: ModelInfo) -> ImageParams:
    """``params`` with size, steps and guidance filled in where they were left to the model. Raises ``BadJob``."""
    workflow = find_workflow(params, info)
    width, height = info.default_size
    guided = "guidance_scale" in workflow.inputs and params.guidance_scale is None
    return msgspec.structs.replace(
        params,
        width=params.width or width,
        height=params.height or height,
        num_inference_steps=info.default_steps if params.num_inference_steps is None else params.num_inference_steps,
        guidance_scale=info.default_guidance if guided else params.guidance_scale,
    )


def find_workflow(params: ImageParams, info: ModelInfo) -> Workflow:
    """The workflow that ``params`` name. Raises ``BadJob``."""
    found = info.workflow(params.workflow)
    if found is None:
        names = ", ".join(workflow.name for workflow in info.workflows)
        raise BadJob(f"{info.name} cannot do {params.workflow!r}; it can do {names}")
    return found


def check(params: ImageParams, images: Mapping[str, bytes], role: Role, info: ModelInfo) -> None:
    """Raises ``BadJob`` for what ``info`` rules out; ``params`` are complete."""
    workflow = find_workflow(params, info)
    _check_size(params, info)
    if (params.num_inference_steps or 0) < 1:
        raise BadJob(f"num_inference_steps must be at least 1, not {params.num_inference_steps}")
    if params.strength is not None and not 0 < params.strength <= 1:
        raise BadJob(f"strength must be above 0 and at most 1, not {params.strength}")
    if params.max_sequence_length is not None and not 1 <= params.max_sequence_length <= _MAX_TOKENS:
        raise BadJob(f"max_sequence_length must be from 1 to {_MAX_TOKENS}, not {params.max_sequence_length}")
    given = [name for name in _OPTIONAL if getattr(params, name) not in (None, "")]
    given += ["image" if is_reference(name) else "control_image" if is_control(name) else name for name in images]
    for name in given:
        if name not in workflow.inputs:
            raise BadJob(
                f"{name} has no effect on {info.name} in {workflow.name}; it reads {', '.join(workflow.inputs)}"
            )
    if params.guider is not None and role is Role.DIT:
        guiders.check(params.guider, info, params.guidance_scale)
    pictures = sum(map(is_reference, images))
    if pictures > workflow.max_images:
        raise BadJob(f"{workflow.name} with {info.name} takes {workflow.max_images} of the {pictures} pictures at most")
    _check_steering(params, images, role, info, workflow)
    _check_step_cache(params, info)
    needed = {"image", "mask_image", "ip_adapter_image"} & set(workflow.inputs)
    puts_back = role is Role.DECODER and "mask_image" in needed
    if (role is Role.ENCODER or puts_back) and needed - images.keys():
        raise BadJob(f"{workflow.name} needs {' and '.join(sorted(needed - images.keys()))}")


def _check_steering(
    params: ImageParams, images: Mapping[str, bytes], role: Role, info: ModelInfo, workflow: Workflow
) -> None:
    reader = Role.ENCODER if "control_image" in workflow.encoder_inputs else Role.DIT
    is_missing = not params.controls or (role is reader and "control_image" not in images)
    if "control_image" in workflow.inputs and is_missing:
        raise BadJob(f"{workflow.name} needs ControlNets, and a picture for each")
    controls.check(params.controls, images, info)
    if params.ip_adapter is not None and params.ip_adapter.name not in info.ip_adapters:
        known = ", ".join(info.ip_adapters) or "none"
        raise BadJob(f"{info.name} has no IP-Adapter {params.ip_adapter.name!r}; it has {known}")
    if params.ip_adapter is not None and (params.guidance_scale or 0.0) <= 1.0:
        raise BadJob(f"an IP-Adapter needs a guidance_scale above 1, not {params.guidance_scale}")
    if ("ip_adapter_image" in workflow.inputs) != (params.ip_adapter is not None):
        raise BadJob(f"{workflow.name} needs an IP-Adapter, and no other task takes one")


def _check_step_cache(params: ImageParams, info: ModelInfo) -> None:
    if params.step_cache and params.step_cache not in info.step_caches:
        levels = ", ".join(info.step_caches) or "none"
        raise BadJob(f"{info.name} has no step cache {params.step_cache!r}; it has {levels}")
    if params.step_cache and params.guider is not None and GUIDERS[params.guider.name].changes_layers:
        raise BadJob(f"a step cache and the guider {params.guider.name!r}, which changes layers, exclude each other")
    if params.step_cache and (params.controls or params.ip_adapter is not None):
        raise BadJob("a step cache and pictures that steer exclude each other")


def check_strength(params: ImageParams, default: float | None) -> None:
    """Image-to-image runs only the last ``strength`` of the steps. Raises ``BadJob`` when that is none."""
    strength = default if params.strength is None else params.strength
    if strength is not None and int((params.num_inference_steps or 0) * strength) < 1:
        raise BadJob(
            f"num_inference_steps × strength must reach 1: {params.num_inference_steps} × {strength} leaves no step"
        )


def _check_size(params: ImageParams, info: ModelInfo) -> None:
    multiple = info.size_multiple
    for name, pixels in (("width", params.width), ("height", params.height)):
        if pixels < multiple or pixels % multiple:
            raise BadJob(f"{name} must be a positive multiple of {multiple} for {info.name}, not {pixels}")
    if info.max_pixels and params.width * params.height > info.max_pixels:
        raise BadJob(f"{params.width}x{params.height} is more than the {info.max_pixels} pixels that {info.name} takes")
