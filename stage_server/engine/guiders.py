"""Guiders that a request names in place of the model's own: diffusers' classes, made anew for each job.

Some make a few layers of the denoiser worse for one of their passes. They do so to the weights that all jobs share, and
diffusers leaves it to the block to take that back after the pass, which it does not if the pass fails. Here it is done
around the one call alone, at the port, and taken back whatever happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import guiders
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.hooks import LayerSkipConfig

from stage_server.engine.base import BadJob
from stage_server.engine.port import JobPort, original
from stage_server.engine.split import DENOISERS
from wire.guiders import GUIDERS, NUMBERS, GuiderUse
from wire.params import ModelInfo

_USUAL = {"start": "start", "stop": "stop", "rescale": "guidance_rescale"}


@dataclass(frozen=True, slots=True)
class _Kind:
    """How diffusers calls a guider and its numbers."""

    make: type[BaseGuidance]
    names: Mapping[str, str]
    layers: str = ""
    """The option that names layers."""
    skips: Mapping[str, bool] | None = None
    """What of a layer is left out; None: all of it."""


_KINDS: Mapping[str, _Kind] = {
    "cfg": _Kind(guiders.ClassifierFreeGuidance, _USUAL),
    "cfg_zero_star": _Kind(guiders.ClassifierFreeZeroStarGuidance, {**_USUAL, "zero_steps": "zero_init_steps"}),
    "apg": _Kind(
        guiders.AdaptiveProjectedGuidance,
        {
            **_USUAL,
            "norm": "adaptive_projected_guidance_rescale",
            "momentum": "adaptive_projected_guidance_momentum",
            "eta": "eta",
        },
    ),
    "tcfg": _Kind(guiders.TangentialClassifierFreeGuidance, _USUAL),
    "mambo_g": _Kind(guiders.MagnitudeAwareGuidance, {**_USUAL, "alpha": "alpha"}),
    "pag": _Kind(
        guiders.PerturbedAttentionGuidance,
        {
            "rescale": "guidance_rescale",
            "scale": "perturbed_guidance_scale",
            "start": "perturbed_guidance_start",
            "stop": "perturbed_guidance_stop",
        },
        "perturbed_guidance_config",
        {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False},
    ),
    "slg": _Kind(
        guiders.SkipLayerGuidance,
        {
            "rescale": "guidance_rescale",
            "scale": "skip_layer_guidance_scale",
            "start": "skip_layer_guidance_start",
            "stop": "skip_layer_guidance_stop",
        },
        "skip_layer_config",
    ),
    "auto": _Kind(guiders.AutoGuidance, _USUAL, "auto_guidance_config"),
}
"""Not ``SmoothedEnergyGuidance``, which diffusers 0.42.1 never switches on, as it does not count its passes."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of a denoiser from which guiders choose."""

    path: str
    count: int


_STACKS: Mapping[str, tuple[str, str]] = {
    "QwenImageTransformer2DModel": ("transformer_blocks", "num_layers"),
    "UNet2DConditionModel": ("mid_block.attentions.0.transformer_blocks", "transformer_layers_per_block"),
    "ZImageTransformer2DModel": ("layers", "n_layers"),
}
"""Class → (path of the layers, what its configuration calls their number). Named, as diffusers would look for them in
an order that differs from one process to the next."""

_USUALLY = frozenset({"cfg", "cfg_zero_star", "apg", "tcfg"})
_TAKEN: Mapping[str, frozenset[str]] = {
    "QwenImageTransformer2DModel": frozenset({"cfg", "apg", "tcfg", "mambo_g", "pag"}),
    "UNet2DConditionModel": _USUALLY | {"pag", "slg", "auto"},
    "ZImageTransformer2DModel": _USUALLY | {"pag"},
}
"""Class → what works in diffusers 0.42.1, as tests have found it (tests/engine/test_guiders.py). What does not: MAMBO-G
where latents are not packed, CFG-Zero* where predictions are scaled to one norm, and skipped layers of transformers
that read text and picture together."""


def stack_of(denoiser: str, config: Mapping[str, Any]) -> Stack | None:
    """``denoiser``: its class. None where its layers are not known."""
    if denoiser not in _STACKS:
        return None
    path, number = _STACKS[denoiser]
    count = config.get(number)
    if isinstance(count, list | tuple):
        count = count[-1]  # of the middle block, as of the last one before it
    if isinstance(count, list | tuple):
        count = count[0]
    return Stack(path, count) if isinstance(count, int) and count else None  # loading says what is wrong with others


def offered(pipeline: Any, denoiser: str, stack: Stack | None) -> tuple[str, ...]:
    """Those that a model takes."""
    if not isinstance(getattr(pipeline, "guider", None), BaseGuidance):
        return ()
    taken = _TAKEN.get(denoiser, _USUALLY)
    return tuple(name for name, each in GUIDERS.items() if name in taken and (stack or not each.changes_layers))


def check(use: GuiderUse, info: ModelInfo, guidance_scale: float | None) -> None:
    """Raises ``BadJob`` for what the model does not take."""
    if use.name not in info.guiders:
        raise BadJob(f"{info.name} takes no guider {use.name!r}; it takes {', '.join(info.guiders) or 'none'}")
    if beyond := [layer for layer in use.layers if layer >= info.guided_layers]:
        raise BadJob(f"{info.name} has the layers 0 to {info.guided_layers - 1}, not {beyond[0]}")
    if (guidance_scale or 0.0) <= 1.0:
        raise BadJob(f"the guider {use.name!r} needs a guidance_scale above 1, not {guidance_scale}")


def made(use: GuiderUse, guidance_scale: float, own: BaseGuidance, pipeline: Any, port: JobPort) -> BaseGuidance:
    """The guider of one job in place of the ``pipeline``'s ``own``; calls are made by way of ``port``."""
    kind, stack = _KINDS[use.name], stack_in(pipeline)
    given = {kind.names[name]: value for name in NUMBERS if (value := getattr(use, name)) is not None}
    given["use_original_formulation"] = own.config.get("use_original_formulation", False)
    if kind.layers and stack is not None:
        layers = list(use.layers) or [stack.count // 2]
        given[kind.layers] = LayerSkipConfig(indices=layers, fqn=stack.path, **(kind.skips or {}))
    guider = kind.make(guidance_scale=guidance_scale, **given)
    return around_each_call(guider, port) if GUIDERS[use.name].changes_layers else guider


def around_each_call(guider: BaseGuidance, port: JobPort) -> BaseGuidance:
    """``guider``, which changes layers no more when it is asked to, but around the call that follows."""
    kind: Any = type(guider)

    @contextmanager
    def changed(module: torch.nn.Module) -> Iterator[None]:
        state: Any = guider
        state._count_prepared -= 1  # which ``prepare_models`` counts
        try:
            kind.prepare_models(guider, module)
            yield
        finally:
            kind.cleanup_models(guider, module)
            _forget_hooks(module)

    def prepare_models(denoiser: torch.nn.Module) -> None:
        BaseGuidance.prepare_models(guider, denoiser)
        port.around = (original(denoiser), changed)

    def cleanup_models(_denoiser: torch.nn.Module) -> None:
        port.around = None

    vars(guider).update(prepare_models=prepare_models, cleanup_models=cleanup_models)
    return guider


def _forget_hooks(module: torch.nn.Module) -> None:
    """diffusers leaves empty registries behind, and ``forward`` set on the modules that had a hook. Such a module would
    pass for one that cannot be copied, so a job with a step cache would set its own hooks on the one that all share."""
    for each in module.modules():
        own = vars(each)
        registry = own.get("_diffusers_hook")
        if registry is None or registry.hooks:
            continue
        del own["_diffusers_hook"]
        if own.get("forward") == type(each).forward.__get__(each):
            del own["forward"]


def stack_in(pipeline: Any) -> Stack | None:
    """Of the denoiser that the pipeline has loaded."""
    found = (getattr(pipeline, name, None) for name in DENOISERS)
    denoiser: Any = next((module for module in found if isinstance(module, torch.nn.Module)), None)
    return None if denoiser is None else stack_of(type(denoiser).__name__, denoiser.config)
