"""Large pictures through a VAE in tiles, and one at a time: the memory of a job is then that of one tile.

Tiles overlap by a quarter and are blended, so a tiled picture is not that of the whole to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, lcm
from typing import Any

import torch

from stage_server.engine.alive import most_alive
from stage_server.engine.base import LoadError
from stage_server.engine.geometry import Geometry
from stage_server.engine.stubs import meta_instance

MARGIN = 1.5
"""Of the device's memory beside tensors, for what its libraries need as they compute: reasoned, not measured."""

KEPT_BYTES = 48
"""Of each pixel of a picture in tiles, while these are put together: all tiles with what overlaps, rows, the whole."""

UNIT = 256
"""Sides that are chosen are multiples of it, so that devices of nearly the same memory choose the same."""

_TRIED = 32
"""Latents, along one side, of the picture by which it is found what a pixel takes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecodedBytes:
    """What a picture takes of the device while it is decoded, predicted, beside the weights."""

    per_pixel: float
    """Bytes of tensors that are alive at once."""
    largest: int
    """Pixels of the largest picture that is served."""

    @property
    def whole(self) -> int:
        """Of the largest, in one go."""
        return int(MARGIN * self.per_pixel * self.largest)

    def tiled(self, side: int) -> int:
        """Of the largest, in tiles of ``side`` pixels."""
        return min(self.whole, int(MARGIN * self.per_pixel * side**2) + KEPT_BYTES * self.largest)

    def side(self, most: int, factor: int) -> int | None:
        """Of the largest tiles with which no picture takes more than ``most`` bytes, or of the smallest that there are;
        None where every picture fits in one go. ``factor``: pixels to a latent."""
        if self.whole <= most:
            return None
        unit = lcm(UNIT, 4 * factor)
        fitting = isqrt(int(max(0, most - KEPT_BYTES * self.largest) / (MARGIN * self.per_pixel)))
        return max(unit, fitting // unit * unit)


def decoded_bytes(
    kind: Any, config: Mapping[str, Any], dtype: torch.dtype, geometry: Geometry, largest: int
) -> DecodedBytes | None:
    """Of a VAE that knows tiles, without loading it; None of another, and where it cannot be tried without weights."""
    vae: Any = meta_instance(kind, config)
    if not (hasattr(vae, "tile_latent_min_size") or hasattr(vae, "tile_sample_min_height")):
        return None
    if config.get("force_upcast") and dtype is torch.float16:
        dtype = torch.float32
    frames = (1,) if geometry.video_vae else ()
    shape = (1, geometry.latent_channels, *frames, _TRIED, _TRIED)
    try:
        torch.nn.Module.to(vae, dtype)  # diffusers' own warns of what it does with weights
        alive = most_alive(vae.decode, torch.empty(shape, dtype=dtype, device="meta"))
    except (RuntimeError, TypeError, ValueError) as error:
        _log.warning("what %s takes to decode a picture is not known: %s", type(vae).__name__, error)
        return None
    return DecodedBytes(alive / (_TRIED * geometry.vae_factor) ** 2, largest)


def has_limit(device: torch.device) -> bool:
    """It has memory of its own: a processor's jobs share the host's with whatever else runs there."""
    return device.type == "cuda"


def chosen_side(decoded: DecodedBytes | None, most: int, factor: int) -> int | None:
    """See ``DecodedBytes.side``; None, which is said, where it is not known what pictures take."""
    if decoded is None:
        _log.warning("--vae-tile auto: this VAE has no tiles, or what it takes is not known; pictures pass whole")
        return None
    side = decoded.side(most, factor)
    told = f"tiles of {side} pixels" if side else "no tiles"
    _log.info(
        "--vae-tile auto: %s, as the largest picture takes %.1f GB of %.1f", told, decoded.whole / 1e9, most / 1e9
    )
    return side


def tile(vae: Any, side: int) -> None:
    """Pictures larger than ``side`` pixels in either direction go in tiles of ``side``. Raises ``LoadError``."""
    if hasattr(vae, "tile_latent_min_size"):
        factor = _factor(side, 2 ** (len(vae.config.block_out_channels) - 1))
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // factor
    elif hasattr(vae, "tile_sample_min_height"):
        _factor(side, vae.spatial_compression_ratio)
        vae.enable_tiling(side, side, side * 3 // 4, side * 3 // 4)
    else:
        raise LoadError(f"--vae-tile: {type(vae).__name__} has no tiles; leave the option out")
    vae.enable_slicing()


def _factor(side: int, factor: int) -> int:
    """Pixels to a latent, whose tiles must begin on whole ones, at every three quarters."""
    step = 4 * factor
    if side % step:
        raise LoadError(f"--vae-tile {side}: this VAE takes multiples of {step}, {side // step * step or step} for one")
    return factor
