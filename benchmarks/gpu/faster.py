"""What makes steps of a model of full size faster: step caches, compiled code, attention backends. Seconds alone: of
random weights no picture tells what is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
import torch

from benchmarks.gpu.records import Records
from stage_server.engine.attention import NATIVE, candidates, set_backend
from stage_server.engine.base import EngineError, LoadError, NamedValues, StageJob, Unwatched
from stage_server.engine.compiled import Compiler
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import Role

LEVELS: Mapping[str, str] = {
    "first-block": "first-block:threshold=10",
    "taylor": "taylor:interval=3",
    "pyramid": "pyramid:interval=2",
}
"""By plan, or as far as it goes: what a threshold lets through depends on weights."""

STEPS = 12
"""Fewer would show little of what is left out."""

COMPILE_SECONDS = 300.0


def seconds(engine: DiffusersEngine, params: ImageParams, inputs: NamedValues, repeats: int, **job: Any) -> float:
    """Of one dit job, the one in the middle; the first does not count."""
    times = []
    for _ in range(repeats + 1):
        began = perf_counter()
        engine.run(StageJob(Role.DIT, params, **job), inputs, Unwatched())
        times.append(perf_counter() - began)
    return median(times[1:])


Tell = Callable[..., None]


def step_caches(engine: DiffusersEngine, params: ImageParams, inputs: NamedValues, repeats: int, tell: Tell) -> None:
    params = msgspec.structs.replace(params, num_inference_steps=STEPS)
    tell(way="exact", seconds=seconds(engine, params, inputs, repeats))
    for level in engine.describe().step_caches:
        cached = msgspec.structs.replace(params, step_cache=level)
        tell(way=LEVELS[level], seconds=seconds(engine, cached, inputs, repeats))


def compiled(
    engine: DiffusersEngine, compiler: Compiler, params: ImageParams, inputs: NamedValues, repeats: int, tell: Tell
) -> None:
    tell(way="as written", seconds=seconds(engine, params, inputs, repeats))
    began = perf_counter()
    engine.run(StageJob(Role.DIT, params, fast=True), inputs, Unwatched())
    if not compiler.wait_until_done(COMPILE_SECONDS):
        raise EngineError(f"not compiled after {COMPILE_SECONDS:g} s")
    tell(way="compiling", seconds=perf_counter() - began)
    tell(way="compiled", seconds=seconds(engine, params, inputs, repeats, fast=True))


def attention(engine: DiffusersEngine, params: ImageParams, inputs: NamedValues, repeats: int, tell: Tell) -> None:
    """On the denoiser that is loaded, which gets its own one back."""
    module = engine._pipeline.transformer
    try:
        for name in (NATIVE, *candidates()):
            try:
                set_backend(module, name)
                tell(way=name, seconds=seconds(engine, params, inputs, repeats))
            except (LoadError, EngineError) as error:
                tell(way=name, skipped=f"{name}: {' '.join(str(error).split())[:200]}")
    finally:
        module.reset_attention_backend()


def told(records: Records, part: str, name: str, size: str) -> Tell:
    def tell(**facts: Any) -> None:
        if torch.cuda.is_available():
            facts["peak_bytes"] = torch.cuda.max_memory_allocated()
        records.add(part, name, role=Role.DIT, size=size, **facts)

    return tell
