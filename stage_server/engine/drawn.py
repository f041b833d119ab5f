"""What a decoder job has drawn: from the blocks' state to the file, or to the pixels for an upscaler."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.modular_pipelines import PipelineState
from PIL import Image

from stage_server.engine import pictures
from stage_server.engine.base import IMAGE_PORT, PIXELS, BadJob, EngineError, NamedValues, Outputs, WrongSize
from stage_server.engine.stage_task import StageTask
from stage_server.engine.tensors import as_is, to_wire
from wire.types import Role
from wire.values import Tensor


def drawn(state: PipelineState, task: StageTask) -> Any:
    """The picture as PIL has it, or as a tensor (channels, height, width) of bytes, where it lies; of a video with
    its frames before that.

    Rounded as diffusers does it, and before it leaves the device: a quarter of the bytes have to be copied. Raises
    ``EngineError`` or ``WrongSize``.
    """
    image, params = _one(state, task), task.params
    size = tuple(image.shape[:-3:-1]) if isinstance(image, torch.Tensor) else image.size
    for asked, side in zip(task.size_asked, size, strict=True):
        if asked not in (0, side):
            raise WrongSize(f"the picture is {size[0]}x{size[1]}, {params.width}x{params.height} was asked for; "
                            "this model draws at sizes of its own choice")  # fmt: skip
    return image.float().mul(255).round().to(torch.uint8) if isinstance(image, torch.Tensor) else image


def _one(state: PipelineState, task: StageTask) -> Any:
    """The picture, or the frames of a video (frames, channels, height, width)."""
    made = state.get("images")
    if made is None:
        made = state.get("videos")
    if not isinstance(made, list | torch.Tensor) or len(made) != 1:
        raise EngineError(f"the decoder made {type(made).__name__}, not one picture")
    is_single_frame = not task.workflow.makes_video and isinstance(made[0], torch.Tensor) and made[0].dim() == 4
    return made[0][0] if is_single_frame else made[0]


def picture(made: Any, task: StageTask) -> Outputs:
    """As a file, or for the upscaler. ``made``: what ``drawn`` made, on the host. Raises ``BadJob``."""
    params = task.params
    if task.workflow.makes_video:
        if params.upscale:
            raise BadJob("'upscale' makes pictures larger, and this is a video.")
        frames = made.permute(0, 2, 3, 1).contiguous()
        video = {"frames": to_wire("frames", frames, as_is), "width": frames.shape[2], "height": frames.shape[1]}
        return {IMAGE_PORT: video}
    image = pictures.from_channels(made.numpy()) if isinstance(made, torch.Tensor) else made
    whole = pictures.put_back(image, task.images) if task.workflow.masked else image
    if params.upscale:
        return {Role.UPSCALER: {PIXELS: _raw(whole)}}
    data = pictures.encode(whole, params.output_format, params.output_compression)
    file: NamedValues = {
        "image": data,
        "format": params.output_format,
        "width": whole.width,
        "height": whole.height,
    }
    return {IMAGE_PORT: file}


def _raw(picture: Image.Image) -> Tensor:
    if picture.mode != "RGB":
        raise BadJob(
            f"'upscale' takes pictures of three channels, red, green and blue, and this one has {picture.mode}."
        )
    pixels = np.ascontiguousarray(np.asarray(picture))
    return Tensor("uint8", pixels.shape, pixels.data.cast("B"))
