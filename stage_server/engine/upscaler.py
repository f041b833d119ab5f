"""A model that makes finished pictures larger: Swin2SR, as transformers has it.

Beside the diffusion model and apart from it: it reads pixels and makes pixels, and knows no prompt, seed or latents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution, Swin2SRImageProcessorPil

from stage_server.engine.base import LoadError
from stage_server.engine.published import check_all_found, digest_of, located, name_of, weights_of
from stage_server.engine.weights import element_counts, loaded_bytes, read_json
from wire.params import Upscaler
from wire.types import MAX_UPSCALE

Pixels = npt.NDArray[np.uint8]
"""Height, width, three channels."""

DTYPE = torch.float32
"""Whatever the diffusion model computes in: the eight bits of bfloat16 are no more than those of a picture."""

_FILES = ("config.json", "preprocessor_config.json", "*.safetensors")
_UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect", "nearest+conv")
"""Not ``pixelshuffle_aux``, which makes a second picture; with any other name the size stays as it is."""
WARM_SIDE = 32
"""Pixels of the picture with which it warms up."""


class PictureUpscaler:
    """One on one device. Its weights are there from ``load`` to ``unload``."""

    def __init__(self, source: str, device: torch.device, *, local_files_only: bool = False) -> None:
        """Reads configuration files and the headers of weights. Raises ``LoadError``."""
        self._folder = located(source, "upscaler", _FILES, local_files_only=local_files_only)
        self._device = device
        self._model: Any = None
        weights = weights_of(self._folder)
        config = self._config()
        self._processor: Any = self._opened_processor(config)
        self.nbytes = sum(loaded_bytes(element_counts(file), DTYPE.itemsize) for file in weights)
        described = [self._folder / "config.json", self._folder / "preprocessor_config.json"]
        self.info = Upscaler(name_of(source, "upscaler"), digest_of([*described, *weights]), config.upscale)

    @property
    def module(self) -> torch.nn.Module | None:
        model: torch.nn.Module | None = self._model
        return model

    def load(self) -> None:
        """Raises ``LoadError``."""
        try:
            model, about = Swin2SRForImageSuperResolution.from_pretrained(
                self._folder, dtype=DTYPE, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise LoadError(f"the upscaler {self._folder} cannot be loaded: {error}") from error
        check_all_found(about, f"the upscaler {self._folder}")
        self._model = model.to(self._device).eval()

    def unload(self) -> None:
        self._model = None

    def warm_up(self) -> None:
        """Raises whatever the model raises."""
        self.enlarged(self.read(np.zeros((WARM_SIDE, WARM_SIDE, 3), np.uint8)), WARM_SIDE, WARM_SIDE)

    def read(self, pixels: Pixels) -> torch.Tensor:
        """As the model takes it, on the device."""
        values = self._processor(pixels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        prepared: torch.Tensor = values.to(self._device, DTYPE)
        return prepared

    def enlarged(self, prepared: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The same picture with ``height`` × ``width`` pixels times the factor: (channels, height, width), from 0 to 1.

        ``prepared`` is what ``read`` made; the rim that it added is cut off again.
        """
        factor = self.info.factor
        with torch.no_grad():
            made = self._model(pixel_values=prepared).reconstruction
        picture: torch.Tensor = made[0, :, : height * factor, : width * factor].float()
        return picture

    def _config(self) -> Swin2SRConfig:
        found = read_json(self._folder / "config.json")
        kind = found.get("model_type")
        if kind != "swin2sr":
            raise LoadError(f"{self._folder} is a model of the type {kind!r}; an upscaler is of the type 'swin2sr'")
        config = Swin2SRConfig.from_pretrained(self._folder, local_files_only=True)
        channels = (config.num_channels, config.num_channels_out)
        if not 2 <= config.upscale <= MAX_UPSCALE or channels != (3, 3) or config.upsampler not in _UPSAMPLERS:
            raise LoadError(
                f"{self._folder} cannot be an upscaler here: it makes {channels[1]} channels of {channels[0]}, "
                f"{config.upscale} times as large, by {config.upsampler!r}; 3 of 3, from 2 to {MAX_UPSCALE} times, by "
                f"{', '.join(_UPSAMPLERS)} can"
            )
        return config

    def _opened_processor(self, config: Swin2SRConfig) -> Any:
        if (self._folder / "preprocessor_config.json").is_file():
            return Swin2SRImageProcessorPil.from_pretrained(self._folder, local_files_only=True)
        return Swin2SRImageProcessorPil(size_divisor=config.window_size)
