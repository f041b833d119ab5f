"""What a model says about itself, read from blocks and configuration files alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from diffusers import ModularPipeline

from stage_server.engine import guiders
from stage_server.engine.checkpoint import Checkpoint
from stage_server.engine.components import Components
from stage_server.engine.geometry import Geometry
from stage_server.engine.ip_adapters import IPAdapters
from stage_server.engine.pictures import encoders
from stage_server.engine.references import max_images, references
from stage_server.engine.split import DENOISERS, WorkflowSplit
from wire.params import ModelInfo
from wire.types import Role

_FALLBACK_STEPS = 50


def read_geometry(pipeline: ModularPipeline, family: str, components: Components) -> Geometry:
    """Sizes, from the configurations of denoiser, VAE and image processor."""
    processor = getattr(pipeline, "image_processor", None)
    factor = int(processor.config.vae_scale_factor) if processor is not None else 1
    return Geometry.read(family, denoiser_config(components), components.configs.get("vae", {}), factor)


def read_info(
    pipeline: ModularPipeline,
    family: str,
    checkpoint: Checkpoint,
    components: Components,
    workflows: Mapping[str, WorkflowSplit],
    geometry: Geometry,
    dtype: str,
    ip_adapters: IPAdapters,
) -> ModelInfo:
    """The model as clients and other stages see it. ``serving.json`` of the folder wins over the blocks' defaults.

    Whatever may change the bytes of a picture is part of the key.
    """
    attention, compiled = components.attention_backend, components.compiled
    unusual: tuple[Any, ...] = (attention,) if attention else ()
    formats = {name: form.value for name, form in sorted(components.formats.items())}
    if formats:
        unusual += (formats,)
    if components.vae_tile is not None:
        unusual += (f"VAE in tiles of {components.vae_tile}",)
    step_caches = {level: str(cache) for level, cache in components.step_caches.items()}
    if step_caches:
        unusual += (step_caches,)
    revisions = {name: files.digest() for name, files in sorted(components.files.items())} | ip_adapters.revisions
    defaults = checkpoint.serving_defaults()
    for told in ("quantize", "step_caches", "offload"):  # whoever says it with the option instead has the same model
        defaults.pop(told, None)
    ignored = _ignored(pipeline, components)
    denoiser, stack = _stack(components)
    return ModelInfo(
        name=checkpoint.name,
        key=f"{checkpoint.name}@{_digest(revisions, dtype, defaults, encoders(), *unusual)}",
        family=family,
        dtype=dtype,
        revisions=revisions,
        workflows=tuple(
            split.describe(ignored, max_images(family, name), references(family, name, geometry.token_pixels))
            for name, split in workflows.items()
        ),
        size_multiple=geometry.size_multiple,
        default_size=default_size(pipeline, checkpoint, geometry),
        max_pixels=int(defaults.get("max_pixels", 0)),
        default_steps=int(
            defaults.get("default_steps") or _block_default(workflows, "num_inference_steps") or _FALLBACK_STEPS
        ),
        default_guidance=defaults.get("default_guidance", _default_guidance(pipeline, workflows, ignored)),
        quality_steps=defaults.get("quality_steps", {}),
        attention=attention,
        compiled=compiled,
        formats=formats,
        ip_adapters=ip_adapters.names,
        step_caches=step_caches,
        guiders=guiders.offered(pipeline, denoiser, stack),
        guided_layers=stack.count if stack is not None else 0,
    )


def _stack(components: Components) -> tuple[str, guiders.Stack | None]:
    """The denoiser's class, and the layers that guiders may change."""
    name = next((name for name in DENOISERS if name in components.files), None)
    if name is None:
        return "", None
    kind = components.files[name].type_hint.__name__
    return kind, guiders.stack_of(kind, components.configs[name])


def default_size(pipeline: ModularPipeline, checkpoint: Checkpoint, geometry: Geometry) -> tuple[int, int]:
    """Width and height, in pixels."""
    width, height = checkpoint.serving_defaults().get("default_size") or _default_size(pipeline, geometry)
    return width, height


def denoiser_config(components: Components) -> Mapping[str, Any]:
    return next((components.configs[name] for name in DENOISERS if name in components.configs), {})


def _ignored(pipeline: ModularPipeline, components: Components) -> frozenset[str]:
    """Inputs that blocks read and the weights ignore: without a guider, guidance needs a denoiser that embeds it."""
    embeds = denoiser_config(components).get("guidance_embeds", False)
    return frozenset() if embeds or _guider(pipeline) is not None else frozenset({"guidance_scale"})


def _guider(pipeline: ModularPipeline) -> Any:
    return getattr(pipeline, "guider", None)


def _digest(*parts: Any) -> str:
    """Defaults count too: all stages of one picture must fill in the same."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _default_size(pipeline: ModularPipeline, geometry: Geometry) -> tuple[int, int]:
    multiple = geometry.size_multiple
    width, height = getattr(pipeline, "default_width", 1024), getattr(pipeline, "default_height", 1024)
    return max(multiple, width // multiple * multiple), max(multiple, height // multiple * multiple)


def _block_default(workflows: Mapping[str, WorkflowSplit], name: str) -> Any:
    defaults = (workflow.parts[Role.DIT].default(name) for workflow in workflows.values())
    return next((default for default in defaults if default is not None), None)


def _default_guidance(
    pipeline: ModularPipeline, workflows: Mapping[str, WorkflowSplit], ignored: frozenset[str]
) -> float | None:
    guider = _guider(pipeline)
    if guider is None:
        return None if ignored else _block_default(workflows, "guidance_scale")
    return guider.config.guidance_scale if guider.config.enabled else None
