"""A diffusion model's engine with one stage more: what comes after its decoder, and is no part of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import msgspec
import numpy as np
import torch
from PIL import Image

from stage_server.engine import pictures
from stage_server.engine.base import (
    IMAGE_PORT,
    PIXELS,
    BadJob,
    DeviceTurn,
    EngineError,
    JobControl,
    LoadError,
    MakeBuffer,
    NamedValues,
    Outputs,
    Prepared,
    StageJob,
)
from stage_server.engine.default_dtype import guarded
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.finite import FiniteCheck
from stage_server.engine.forms import Forms
from stage_server.engine.translated import errors_translated
from stage_server.engine.upscaler import DTYPE, PictureUpscaler, Pixels
from wire.params import ImageParams, ModelInfo
from wire.to_gateway import RoleInfo
from wire.types import Role
from wire.values import Tensor

OWN = frozenset({Role.UPSCALER})
WARM_SIDE = 32
"""Pixels of the picture with which it warms up."""


class UpscalingEngine:
    """``Engine``: what concerns the upscaler is done here, all else by ``inner``."""

    def __init__(self, inner: DiffusersEngine, upscaler: PictureUpscaler) -> None:
        self.inner = inner
        self._upscaler = upscaler
        self._device = inner.device
        self.beside: Callable[[], int] = lambda: 0
        inner.beside = lambda: self._own_bytes + self.beside()

    @property
    def _own_bytes(self) -> int:
        return self._upscaler.nbytes if self._upscaler.is_loaded else 0

    # --- as it introduces itself --------------------------------------------------------------------------------------

    @property
    def roles(self) -> frozenset[Role]:
        return self.inner.roles | (OWN if self._upscaler.is_loaded else frozenset())

    def describe(self) -> ModelInfo:
        return msgspec.structs.replace(self.inner.describe(), upscaler=self._upscaler.info)

    def capable(self) -> dict[Role, RoleInfo]:
        others = self.inner.capable()
        spared = max(info.activation_bytes for info in others.values())
        return others | {Role.UPSCALER: RoleInfo(weight_bytes=self._upscaler.nbytes, activation_bytes=spared)}

    @property
    def device_class(self) -> str:
        return self.inner.device_class

    @property
    def device_uuid(self) -> str:
        return self.inner.device_uuid

    @property
    def software(self) -> str:
        return self.inner.software

    @property
    def shares_guidance(self) -> bool:
        return self.inner.shares_guidance

    @property
    def memory_bytes(self) -> int:
        return self.inner.memory_bytes

    @property
    def resident_bytes(self) -> int:
        return self.inner.resident_bytes + self._own_bytes

    @property
    def host_buffer(self) -> MakeBuffer | None:
        return self.inner.host_buffer

    @property
    def forms(self) -> Forms:
        return self.inner.forms

    @property
    def warm(self) -> frozenset[Role]:
        return self.inner.warm

    # --- roles --------------------------------------------------------------------------------------------------------

    def preload(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        """An upscaler is small: it is read when it is needed."""
        self.inner.preload(roles - OWN, turn)

    def set_roles(self, roles: frozenset[Role], turn: DeviceTurn = nullcontext) -> None:
        was_loaded, wanted = self._upscaler.is_loaded, Role.UPSCALER in roles
        try:
            if wanted and not was_loaded:
                self._load(turn)
            if roles - OWN != self.inner.roles:
                self.inner.set_roles(roles - OWN, turn)
        except LoadError:
            if not was_loaded:
                self._upscaler.unload()
            raise
        if was_loaded and not wanted:
            self._upscaler.unload()

    def _load(self, turn: DeviceTurn) -> None:
        try:
            with errors_translated(self._device):
                with guarded(turn):
                    self._upscaler.load()
                with turn():
                    blank = np.zeros((WARM_SIDE, WARM_SIDE, 3), np.uint8)
                    self._upscaler.enlarged(self._upscaler.read(blank), WARM_SIDE, WARM_SIDE)
        except EngineError as error:
            raise LoadError(f"the upscaler {self._upscaler.info.name} cannot run here: {error}") from error

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def output_bound(self, job: StageJob) -> int:
        if job.role is not Role.UPSCALER:
            return self.inner.output_bound(job)
        width, height = self._size(job.params)
        return pictures.encoded_bound(width, height)

    def prepare(self, job: StageJob, inputs: NamedValues) -> Prepared:
        if job.role is not Role.UPSCALER:
            return self.inner.prepare(job, inputs)
        if not self._upscaler.is_loaded:
            raise EngineError(f"this server does not hold the role {job.role}")
        if job.params.upscale != self._upscaler.info.factor:
            raise BadJob(f"upscale may be {self._upscaler.info.factor} here, not {job.params.upscale}")
        pixels = _given(inputs)
        with errors_translated(self._device):
            prepared = self._upscaler.read(pixels)
        return partial(self._computed, job.params, [prepared], pixels.shape[0], pixels.shape[1])

    def run(self, job: StageJob, inputs: NamedValues, control: JobControl) -> Outputs:
        return self.prepare(job, inputs)(control)

    def _computed(
        self, params: ImageParams, prepared: list[torch.Tensor], height: int, width: int, control: JobControl
    ) -> Outputs:
        """``prepared`` is taken out of its list, so that it is not kept until the picture is written."""
        control.check()
        check = FiniteCheck(Role.UPSCALER, str(DTYPE).removeprefix("torch."))
        with errors_translated(self._device):
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

    def peak_bytes(self) -> int:
        return self.inner.peak_bytes()

    def close(self) -> None:
        self._upscaler.unload()
        self.inner.close()

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
