"""What modules give in steps that are passed over: nothing, in the right form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, QwenImageControlNetModel

from stage_server.engine.base import EngineError

_LATENT_ARGUMENTS = ("hidden_states", "sample", "x")
"""By which denoisers are given the latents, if not as the first."""


_CONTROLNETS = (ControlNetModel, ControlNetUnionModel, QwenImageControlNetModel)


def blank(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """In the form of what ``module`` gives for these arguments: a denoiser, or a ControlNet. Nobody reads it."""
    if isinstance(module, _CONTROLNETS):
        return [], torch.zeros(())  # what it adds to the denoiser's blocks, to none of them
    latents = next((kwargs[name] for name in _LATENT_ARGUMENTS if name in kwargs), args[0] if args else None)
    if isinstance(latents, list):
        return ([torch.zeros_like(each) for each in latents],)
    if not isinstance(latents, torch.Tensor):
        raise EngineError("this denoiser is given its latents in a way that is not known, so nobody can go on with it")
    return (torch.zeros_like(latents),)
