"""In what tiles the largest pictures pass through the VAE, and the memory that one of them needs: decided at the start.

By what the device has, not by what is free at the moment: a server that starts again decides the same, and requests of
one model get the pictures of one decision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from stage_server.engine.activations import decoding_bytes
from stage_server.engine.base import LoadError
from stage_server.engine.components import Components
from stage_server.engine.load_options import LoadOptions
from stage_server.vae_tiles import VaeTile

_log = logging.getLogger(__name__)

SIDES = (1024, 768, 512, 384, 256)
"""Of tiles that are tried, in pixels."""

Needed = Callable[[int | None], int | None]
"""Side of the tiles, None: no tiles → bytes that one picture needs to be decoded; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Decoding:
    tile: int | None
    """Pixels of a side; None: pictures are decoded as a whole."""
    nbytes: int | None
    """Beside the weights; None: nobody knows."""


def decide(components: Components, options: LoadOptions, latents: Sequence[int], memory: int) -> Decoding:
    """Which also holds for a VAE that is loaded from now on. ``latents``: shape, of the largest picture; ``memory``:
    bytes of the device. On a processor nothing is looked into unless tiles are asked for. Raises ``LoadError``."""
    if "vae" not in components.files or (options.vae_tile is None and options.device.type != "cuda"):
        return Decoding(None, None)
    kind, config = components.files["vae"].type_hint, components.configs["vae"]
    free = memory - sum(components.nbytes(name) for name, files in components.files.items() if files.is_module)
    if free <= 0:  # not all of it will be on one device
        free = memory - components.nbytes("vae")
    found = decided(options.vae_tile, partial(decoding_bytes, kind, config, options.dtype, latents), free)
    components.vae_tile = found.tile
    return found


def decided(asked: VaeTile | None, needed: Needed, free: int) -> Decoding:
    """``free``: bytes of the device beside the weights. Raises ``LoadError``."""
    if isinstance(asked, int):
        return Decoding(asked, needed(asked))
    whole = needed(None)
    if asked is None:
        if whole is not None and whole > free:
            _log.warning(
                "the largest pictures need %.1f GB to be decoded, and %.1f GB are there beside the weights: --vae-tile "
                "auto decodes them in tiles", whole / 1e9, free / 1e9,
            )  # fmt: skip
        return Decoding(None, whole)
    if whole is None:
        raise LoadError("--vae-tile auto: what this VAE needs is not known beforehand; name a side, or leave it out")
    if whole <= free:
        _log.info("--vae-tile auto: the largest pictures need %.1f GB as a whole, which is there", whole / 1e9)
        return Decoding(None, whole)
    found = [Decoding(side, nbytes) for side in SIDES if (nbytes := _of_tiles(needed, side)) is not None]
    if not found:
        raise LoadError("--vae-tile auto: this VAE has no tiles; leave it out")
    chosen = next((each for each in found if each.nbytes is not None and each.nbytes <= free), found[-1])
    _log.info(
        "--vae-tile auto: tiles of %s pixels, as the largest pictures need %.1f GB as a whole, and %.1f GB are there",
        chosen.tile, whole / 1e9, free / 1e9,
    )  # fmt: skip
    return chosen


def _of_tiles(needed: Needed, side: int) -> int | None:
    try:
        return needed(side)
    except LoadError:  # not a multiple that it takes
        return None
