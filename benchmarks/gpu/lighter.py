"""Weights of the denoiser in fewer bytes, and in parts that come for their calls: what they take of the device against
the prediction, and what a step takes against full weights. Of random weights no picture tells what is lost."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu.faster import seconds
from stage_server.engine.base import EngineError, LoadError, NamedValues
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.offload import Offload
from stage_server.weight_formats import WeightFormat
from wire.params import ImageParams
from wire.types import Role

DENOISER = "transformer"

Ways = Mapping[str, Mapping[str, Any]]
"""Name → settings of an engine."""

FORMATS: Ways = {form.value: {"quantize": {DENOISER: form}} for form in WeightFormat if form is not WeightFormat.NONE}
OFFLOADING: Ways = {level.value: {"offload": {DENOISER: level}} for level in Offload if level is not Offload.NONE}

FULL = "full"

Jobs = Sequence[tuple[str, ImageParams, NamedValues]]
"""Size, parameters and inputs of dit jobs."""

Make = Callable[[Mapping[str, Any]], DiffusersEngine]
"""An engine of its own with these settings. Raises ``LoadError``."""

Tell = Callable[..., None]


def lighter(full: DiffusersEngine, make: Make, ways: Ways, jobs: Jobs, repeats: int, tell: Tell) -> None:
    """Each way after full weights, which leave the device: ``full`` holds no role in the end. A way that cannot be here
    is told as skipped."""
    full.set_roles(frozenset())
    alone = _measured(full, FULL, jobs, repeats, {}, tell)
    for way, settings in ways.items():
        try:
            engine = make(settings)
        except LoadError as error:
            tell(way=way, size="", skipped=_why(way, error))
            continue
        try:
            _measured(engine, way, jobs, repeats, alone, tell)
        except (LoadError, EngineError) as error:
            tell(way=way, size="", skipped=_why(way, error))
        finally:
            engine.close()


def _measured(
    engine: DiffusersEngine, way: str, jobs: Jobs, repeats: int, alone: Mapping[str, float], tell: Tell
) -> dict[str, float]:
    """Seconds of a step by size. ``alone``: those of full weights. It holds no role before, and none in the end."""
    predicted = engine._components.predicted_bytes(DENOISER).device
    before = _allocated()
    engine.set_roles(frozenset({Role.DIT}))
    found = {}
    facts = {"way": way, "predicted_bytes": predicted, "loaded_bytes": engine._components.nbytes(DENOISER)}
    if before is not None:
        facts["allocated_bytes"] = (_allocated() or 0) - before
    for size, params, inputs in jobs:
        found[size] = seconds(engine, params, inputs, repeats) / (params.num_inference_steps or 1)
        tell(size=size, seconds=found[size], relative=found[size] / alone.get(size, found[size]), **facts)
    engine.set_roles(frozenset())
    return found


def _allocated() -> int | None:
    """Bytes of tensors on the device; None where nobody counts them."""
    if not torch.cuda.is_available():
        return None
    gc.collect()
    return torch.cuda.memory_allocated()


def _why(way: str, error: Exception) -> str:
    return f"{way}: {' '.join(str(error).split())[:200]}"
