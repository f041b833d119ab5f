"""Large pictures through a VAE in tiles, and one at a time: the memory of a job is then that of one tile.

Tiles overlap by a quarter and are blended, so a tiled picture is not that of the whole to the bit.
"""

from __future__ import annotations

from typing import Any

from stage_server.engine.base import LoadError


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
