"""Denoisers that reuse what earlier steps of a job computed: diffusers' cache hooks, on a double of the module tree.

Hooks are set on modules and keep their state there, and weights are shared by jobs that interleave. So a job that wants
a cache gets a tree of its own: its inner modules are copies, its layers and weights are those of everybody. Nothing of
it can be seen by another job, which finds no hook on its way; state goes when the job does. Each call of one step has a
tree too, as with guidance there are two, and some hooks keep one state for both.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

import torch
from diffusers import hooks
from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS, _ATTENTION_CLASSES
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.hooks import CacheContext, _set_cache_context

from stage_server.engine.base import LoadError
from stage_server.step_caches import CacheHook, StepCache

_TIMESTEPS = 1000.0
"""Hooks are told how far a job is by a timestep, from this down to 0: each family has others of its own."""

_IMAGE_POWER = 2.0
"""By which the spectrum of pictures falls off, as SeaCache takes it; of videos it is 3."""


class Progress(Protocol):
    """How far the job is, asked while it runs."""

    @property
    def done(self) -> int:
        """Steps."""

    def total(self) -> int: ...

    def sigma(self) -> float | None:
        """The noise level of the step that is computed, 0 to 1; None where the scheduler has none such."""


class CachedDenoisers:
    """Of one job."""

    def __init__(self, cache: StepCache, modules: Collection[Any], progress: Progress) -> None:
        self._cache = cache
        self._modules = modules
        self._progress = progress
        self._trees: dict[tuple[int, int], torch.nn.Module] = {}
        """Module and the number of the call within its step → its tree."""
        self._calls: dict[int, tuple[int, int]] = {}
        """Module → step and calls made in it."""

    def instead(self, module: Any) -> Any:
        """What is to be called for ``module`` this time. Raises ``ValueError`` or ``LookupError`` where the hook cannot
        be used with it."""
        if module not in self._modules:
            return module
        done = self._progress.done
        step, calls = self._calls.get(id(module), (done, 0))
        number = calls if step == done else 0
        self._calls[id(module)] = (done, number + 1)
        tree = self._trees.get((id(module), number))
        if tree is None:
            tree = self._trees[(id(module), number)] = hooked(module, self._cache, self._progress)
        total, sigma = self._progress.total(), self._progress.sigma()
        if self._cache.hook is CacheHook.SEA and sigma is None:
            raise LookupError("sea needs a scheduler whose levels are shares of noise")  # it would compute every step
        _set_cache_context(tree, CacheContext("step", min(done, total - 1), total, sigma=sigma))
        return tree


def hooked(module: Any, cache: StepCache, progress: Progress) -> torch.nn.Module:
    """A double of ``module`` with the hooks of ``cache``. Raises ``ValueError``, which says why it cannot be."""
    tree = own_tree(module)
    _HOOKS[cache.hook](tree, cache, progress)
    return tree


def check_possible(module: Any, level: str, cache: StepCache) -> None:
    """Raises ``LoadError``."""
    try:
        hooked(module, cache, _Nowhere())
    except ValueError as error:
        raise LoadError(f"step cache {level}={cache} cannot be used with this model: {error}") from error


def own_tree(module: torch.nn.Module) -> torch.nn.Module:
    """The same layers and weights in modules of its own, which run as they are written: not compiled."""
    return _own(module, {})


def _own(module: torch.nn.Module, known: dict[int, torch.nn.Module]) -> torch.nn.Module:
    if id(module) in known:
        return known[id(module)]
    # A layer, or one whose ``forward`` is another's bound method, as where weights are cast for each call.
    if not module._modules or "forward" in module.__dict__:
        return known.setdefault(id(module), module)
    double = known[id(module)] = copy.copy(module)
    double.__dict__["_modules"] = {
        name: None if child is None else _own(child, known) for name, child in module._modules.items()
    }
    double.__dict__["_compiled_call_impl"] = None  # it is the other's bound method, and would pass the hooks by
    double.__dict__.pop("_diffusers_hook", None)
    return double


def _first_block(tree: Any, cache: StepCache, _progress: Progress) -> None:
    _blocks(tree, 2, described=True)
    hooks.apply_first_block_cache(tree, hooks.FirstBlockCacheConfig(threshold=cache.number("threshold")))


def _mag(tree: Any, cache: StepCache, progress: Progress) -> None:
    _blocks(tree, 2, described=True)
    config = hooks.MagCacheConfig(
        threshold=cache.number("threshold"),
        max_skip_steps=cache.whole("most"),
        retention_ratio=cache.number("start"),
        num_inference_steps=progress.total(),
        mag_ratios=torch.tensor(cache.numbers("ratios")),
    )
    hooks.apply_mag_cache(tree, config)


def _taylor(tree: Any, cache: StepCache, _progress: Progress) -> None:
    """The last block's output is extrapolated, which is all that counts; the others give zeros of the right shapes."""
    *others, last = _blocks(tree, 1)
    config = hooks.TaylorSeerCacheConfig(
        cache_interval=cache.whole("interval"),
        disable_cache_before_step=cache.whole("warm-up"),
        max_order=cache.whole("order"),
        taylor_factors_dtype=next(tree.parameters()).dtype,
        skip_predict_identifiers=[re.escape(name) for name in others],
        cache_identifiers=[re.escape(last)],
    )
    hooks.apply_taylorseer_cache(tree, config)


def _pyramid(tree: Any, cache: StepCache, progress: Progress) -> None:
    config = hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=cache.whole("interval"),
        spatial_attention_timestep_skip_range=_range(cache),
        current_timestep_callback=_timestep(progress),
    )
    hooks.apply_pyramid_attention_broadcast(tree, config)
    _refuse_unhooked(tree)


def _faster(tree: Any, cache: StepCache, progress: Progress) -> None:
    """Its attention part alone: the other leaves out the call without the prompt, of two that come as one."""
    config = hooks.FasterCacheConfig(
        spatial_attention_block_skip_range=cache.whole("interval"),
        spatial_attention_timestep_skip_range=_range(cache),
        attention_weight_callback=lambda _module: cache.number("weight"),
        is_guidance_distilled=True,
        current_timestep_callback=_timestep(progress),
    )
    hooks.apply_faster_cache(tree, config)
    _refuse_unhooked(tree)


def _sea(tree: Any, cache: StepCache, _progress: Progress) -> None:
    _blocks(tree, 2, described=True)
    config = hooks.SeaCacheConfig(
        threshold=cache.number("threshold"),
        residual_order=cache.whole("order"),
        max_consecutive_cached=cache.whole("most"),
        power_exp=_IMAGE_POWER,
        raw_vision_callback=_latents,
    )
    hooks.apply_sea_cache(tree, config)


_HOOKS: dict[CacheHook, Callable[[Any, StepCache, Progress], None]] = {
    CacheHook.FIRST_BLOCK: _first_block,
    CacheHook.MAG: _mag,
    CacheHook.TAYLOR: _taylor,
    CacheHook.PYRAMID: _pyramid,
    CacheHook.FASTER: _faster,
    CacheHook.SEA: _sea,
}


def _blocks(tree: Any, least: int, *, described: bool = False) -> list[str]:
    """Names of the repeated blocks, in their order; diffusers knows the arguments of those that are ``described``."""
    found = [
        (f"{name}.{index}", block)
        for name, child in tree.named_children()
        if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS and isinstance(child, torch.nn.ModuleList)
        for index, block in enumerate(child)
    ]
    if len(found) < least:
        raise ValueError(f"it needs {least} repeated blocks or more, and {type(tree).__name__} has {len(found)}")
    for kind in {type(block) for _, block in found} if described else ():
        _describe(kind)
    return [name for name, _ in found]


def _describe(kind: type[torch.nn.Module]) -> None:
    """diffusers 0.42.1 looks for an argument ``hidden_states`` in blocks that call it otherwise (Z-Image's: ``x``)."""
    metadata = TransformerBlockRegistry.get(kind)  # ValueError: diffusers does not know it
    names = list(inspect.signature(kind.forward).parameters)[1:]
    if "hidden_states" not in names and metadata.hidden_states_argument_name not in names:
        metadata.hidden_states_argument_name = names[0]
        metadata._cached_parameter_indices = {"hidden_states": 0} | {name: at for at, name in enumerate(names)}


def _refuse_unhooked(tree: Any) -> None:
    attentions = [each for each in tree.modules() if isinstance(each, _ATTENTION_CLASSES)]
    if not any(hasattr(each, "_diffusers_hook") for each in attentions):
        raise ValueError(f"it finds no attention in {type(tree).__name__}, which has {len(attentions)} of its kind")


def _range(cache: StepCache) -> tuple[float, float]:
    """Of timesteps, both excluded, in which something may be left out."""
    return tuple(_TIMESTEPS * (1.0 - cache.number(name)) for name in ("end", "start"))  # type: ignore[return-value]


def _timestep(progress: Progress) -> Callable[[], float]:
    """Of the middle of the step that is computed, so that it is never on an end of a range."""
    return lambda: _TIMESTEPS * (1.0 - (progress.done + 0.5) / progress.total())


def _latents(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Of each picture, as channels × frames × height × width. Raises ``LookupError``, which the hook lets pass:
    of others it makes a warning, and computes every step."""
    given = next(iter(args), None)
    if given is None:
        given = kwargs.get("hidden_states", kwargs.get("x", kwargs.get("sample")))
    if not (found := list(_planes(given))):
        raise LookupError("sea needs latents as planes, and this denoiser gets them packed into a sequence")
    return found


def _planes(given: Any) -> Iterator[torch.Tensor]:
    for each in given if isinstance(given, list | tuple) else (given,):
        if not isinstance(each, torch.Tensor) or each.dim() < 4:
            return
        if each.dim() == 5:
            yield from each.unbind()
        elif isinstance(given, torch.Tensor):
            yield from each.unsqueeze(2).unbind()
        else:
            yield each


class _Nowhere:
    """The progress of a job that does not run."""

    done = 0

    def total(self) -> int:
        return 1

    def sigma(self) -> float | None:
        return None


def noise_level(scheduler: Any, step: int) -> float | None:
    """Of ``step`` (0-based), where the scheduler's levels are shares of noise, as flow matching has them."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or step >= len(sigmas):
        return None
    sigma = float(sigmas[step])
    return sigma if math.isfinite(sigma) and 0.0 <= sigma <= 1.0 else None
