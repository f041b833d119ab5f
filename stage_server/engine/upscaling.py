"""A diffusion model's engine with one stage more: what comes after its decoder."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL import Image

from stage_server.engine import pictures
from stage_server.engine.base import (
    IMAGE_PORT,
    PIXELS,
    BadJob,
    EngineError,
    JobControl,
    NamedValues,
    Outputs,
    Prepared,
)
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.finite import FiniteCheck
from stage_server.engine.further import FurtherEngine
from stage_server.engine.translated import errors_translated
from stage_server.engine.upscaler import DTYPE, PictureUpscaler, Pixels
from wire.params import ImageParams
from wire.types import Role
from wire.values import Tensor


class UpscalingEngine(FurtherEngine):
    role = Role.UPSCALER

    def __init__(self, inner: DiffusersEngine | FurtherEngine, upscaler: PictureUpscaler) -> None:
        super().__init__(inner, upscaler)
        self._upscaler = upscaler

    def bound(self, params: ImageParams) -> int:
        width, height = self._size(params)
        return pictures.encoded_bound(width, height)

    def prepared(self, params: ImageParams, inputs: NamedValues) -> Prepared:
        if params.upscale != self._upscaler.info.factor:
            raise BadJob(f"upscale may be {self._upscaler.info.factor} here, not {params.upscale}")
        pixels = _given(inputs)
        with errors_translated(self.device):
            read = self._upscaler.read(pixels)
        return partial(self._computed, params, [read], pixels.shape[0], pixels.shape[1])

    def _computed(
        self, params: ImageParams, prepared: list[torch.Tensor], height: int, width: int, control: JobControl
    ) -> Outputs:
        """``prepared`` is taken out of its list, so that it is not kept until the picture is written."""
        control.check()
        check = FiniteCheck(Role.UPSCALER, str(DTYPE).removeprefix("torch."))
        with errors_translated(self.device):
            made = self._upscaler.enlarged(prepared.pop(), height, width)
            check.look("picture", made)
            check.leave(torch.Tensor.cpu)
            check.settle()
            drawn = made.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
        self.inner.note_peak()
        control.computed(1)
        control.device_done()
        picture = pictures.from_channels(drawn.numpy())
        return {IMAGE_PORT: _filed(picture, params)}

    def _size(self, params: ImageParams) -> tuple[int, int]:
        """Width and height of what it makes."""
        width, height = self.inner.describe().default_size
        factor = self._upscaler.info.factor
        return (params.width or width) * factor, (params.height or height) * factor


def _given(inputs: NamedValues) -> Pixels:
    pixels = inputs.get(PIXELS)
    if not isinstance(pixels, Tensor) or pixels.dtype != "uint8" or len(pixels.shape) != 3 or pixels.shape[2] != 3:
        raise EngineError(
            "the decoder left no pixels of three channels to make larger: its server may be older than this stage"
        )
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.shape)


def _filed(picture: Image.Image, params: ImageParams) -> dict[str, bytes | str | int]:
    data = pictures.encode(picture, params.output_format, params.output_compression)
    return {"image": data, "format": params.output_format, "width": picture.width, "height": picture.height}
