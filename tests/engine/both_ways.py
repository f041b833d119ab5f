"""One job on three engines with a role each, and on the pipeline that holds everything: what both make."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ModularPipeline
from PIL import Image as PilImage

from stage_server.engine.base import HandOver, StageJob, Unfinished, Unwatched
from stage_server.engine.checkpoint import Checkpoint
from stage_server.engine.control_source import SteeringSources
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import REQUIRED, Role
from wire.values import Tensor, Value

PROMPT = "a large red circle in the center on a white background"
NAMED = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "strength",
    "max_sequence_length",
    "num_frames",
)
"""Parameters that blocks take under the same name."""


def picture(mode: str = "RGB") -> PilImage.Image:
    ramp = np.arange(96 * 64 * 3, dtype=np.uint32) * 2654435761 % 251
    return PilImage.fromarray(ramp.astype(np.uint8).reshape(64, 96, 3)).convert(mode)


def as_png(image: PilImage.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def over_the_wire(value: Value) -> Value:
    """A value as another process would have it: tensors in buffers of their own."""
    if isinstance(value, Tensor):
        return Tensor(value.dtype, value.shape, memoryview(bytes(value.data)))
    if isinstance(value, list):
        return [over_the_wire(item) for item in value]
    if isinstance(value, tuple):
        return tuple(over_the_wire(item) for item in value)
    if isinstance(value, dict):
        return {key: over_the_wire(item) for key, item in value.items()}
    return value


def split(model: str | Path, steering: SteeringSources | None = None, **options: Any) -> dict[Role, DiffusersEngine]:
    """Three engines, each of which holds only its role."""
    engines = {role: DiffusersEngine(str(model), steering=steering, **options) for role in REQUIRED}
    for role, engine in engines.items():
        engine.set_roles(frozenset({role}))
    return engines


def whole(model: str | Path) -> ModularPipeline:
    pipeline = Checkpoint.find(str(model), None, local_files_only=True).open_pipeline()
    pipeline.load_components(dtype=torch.float32)
    if hasattr(pipeline, "prompt_upsampler") and pipeline.prompt_upsampler is None:
        pipeline._blocks.sub_blocks.pop("prompt_upsampler")  # as diffusers says to do without it
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


Made = tuple[tuple[int, ...], bytes]
"""Shape and bytes: (rows, columns, channels), before which a video has its frames."""


def made_by_split(
    engines: Mapping[Role, DiffusersEngine], params: ImageParams, images: Mapping[str, bytes]
) -> PilImage.Image | Tensor:
    inbox: dict[str, dict[str, Value]] = {role: {} for role in REQUIRED} | {"image": {}}
    for role in REQUIRED:
        seen = images if role is not Role.DECODER or "mask_image" in images else {}
        if role is Role.DIT:
            seen = {name: data for name, data in images.items() if name.startswith("control")}
        outputs = engines[role].run(StageJob(role, params, seen), inbox[role], Unwatched())
        for port, values in outputs.items():
            inbox[port] |= {name: over_the_wire(value) for name, value in values.items()}
    frames = inbox["image"].get("frames")
    if isinstance(frames, Tensor):
        return frames
    data = inbox["image"]["image"]
    assert isinstance(data, bytes)
    return PilImage.open(io.BytesIO(data))


def calls_of_the_rest(engine: DiffusersEngine, job: StageJob, given: Mapping[str, Value], steps: Any) -> list[int]:
    """Calls of a dit job in all, and of the same one that goes on after its first and its second step. Raises unless
    it comes to the same. ``steps``: makes a control of what it is to do after each step."""

    def leave_after(step: int) -> Any:
        def then(done: int) -> None:
            if done == step:
                raise HandOver

        return steps(then)

    whole, calls = steps(), list[int]()
    expected = engine.run(job, given, whole)[Role.DECODER]["latents"]
    for step in (1, 2):
        with pytest.raises(Unfinished) as left:
            engine.run(job, given, leave_after(step))
        rest = steps()
        made = engine.run(replace(job, resume=left.value.values), given, rest)[Role.DECODER]["latents"]
        assert content(made) == content(expected)
        calls.append(len(rest.company))
    return [len(whole.company), *calls]


def content(made: Any) -> Made:
    """Of a picture, frames as an engine sends them, or what a pipeline gives as a video: (frames, channels, …)."""
    if isinstance(made, Tensor):
        return made.shape, bytes(made.data)
    if isinstance(made, torch.Tensor):
        made = made.float().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pixels = np.asarray(made)
    return pixels.shape, pixels.tobytes()


def made_by_whole(pipeline: ModularPipeline, params: ImageParams, images: Mapping[str, Any], named: Any = None) -> Any:
    """``named``: the guider in place of the pipeline's own."""
    names = {param.name for param in pipeline.blocks.inputs}
    given: dict[str, Any] = {
        name: value for name in NAMED if name in names and (value := getattr(params, name)) is not None
    }
    scale = params.guidance_scale
    for name in ("guider", "guider_2"):
        if getattr(pipeline, name, None) is not None:
            spec = pipeline.get_component_spec(name)
            guider = named or (spec.create() if spec.default_creation_method == "from_config" else spec.load())
            setattr(pipeline, name, guider if scale is None else guider.new(guidance_scale=scale, enabled=scale > 1))
    if "guidance_schedule" in names:
        given["guidance_schedule"] = [7.0 if scale is None else scale] * (params.num_inference_steps or 1)
    if "max_area" in names:
        given["max_area"] = params.width * params.height
    given |= {} if not params.controls else control_inputs(params)
    generator = torch.Generator("cpu").manual_seed(params.seed)
    if any(output.name == "images" for output in pipeline.blocks.outputs):
        return pipeline(**given, **images, generator=generator, output="images")[0]
    return pipeline(**given, **images, generator=generator, output="videos", output_type="pt")[0]


def control_inputs(params: ImageParams) -> dict[str, Any]:
    """As diffusers' documentation calls them: lists where several ControlNets are one."""
    uses = params.controls
    lists = {
        "controlnet_conditioning_scale": [use.scale for use in uses],
        "control_guidance_start": [use.start for use in uses],
        "control_guidance_end": [use.end for use in uses],
    }
    if uses[0].mode is not None:
        return {name: values[0] for name, values in lists.items()} | {"control_mode": [use.mode for use in uses]}
    return lists if len(uses) > 1 else {name: values[0] for name, values in lists.items()}
