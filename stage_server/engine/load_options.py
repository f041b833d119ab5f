"""How an engine was asked to load weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from stage_server.engine.base import LoadError
from stage_server.engine.compiled import Compiler
from stage_server.offload import Offloads
from stage_server.step_caches import StepCache
from stage_server.weight_formats import Formats

AUTO_TILE = "auto"


class NoRoom(LoadError):
    """The device's memory is too small for what is on it and a component more."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How weights are loaded. ``attention_backend`` and ``compiler`` concern the denoiser only."""

    device: torch.device
    dtype: torch.dtype
    compiler: Compiler | None = None
    attention_backend: str | None = None
    weight_cache_bytes: int | None = 0
    """Of host memory, for weights that are not on the device or may leave it; None: a share of what is free."""
    formats: Formats = field(default_factory=dict)
    """Of components whose weights are quantised; before those of the model's ``serving.json``."""
    offloads: Offloads = field(default_factory=dict)
    """Of components whose weights are on the device in part; before those of ``serving.json``."""
    step_caches: Mapping[str, StepCache | None] = field(default_factory=dict)
    """By level, before those of ``serving.json``; None takes one of those back."""
    vae_tile: int | Literal["auto"] | None = None
    """Side of the tiles, in pixels, in which larger pictures pass through the VAE; ``auto``: by the device's memory."""
    loads: bool = True
    """False: nothing will be loaded, so formats need not be possible here."""
