"""Weights in fewer bits, and weights that come to the device part by part: a dit job's seconds, and memory at its peak.

Each way has an engine of its own, whose weights are made anew: while it is there, the other one holds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from benchmarks.gpu.faster import Tell, seconds
from stage_server.engine.base import EngineError, LoadError, NamedValues
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.offload import Offload
from stage_server.weight_formats import WeightFormat
from wire.params import ImageParams
from wire.types import Role

COMPONENT = "transformer"

Way = tuple[str, Mapping[str, Any]]
"""Its name, and the settings that differ."""

Make = Callable[[Mapping[str, Any]], DiffusersEngine]

Job = tuple[str, ImageParams, NamedValues]
"""Size as it is shown, parameters, inputs."""


def formats() -> Iterator[Way]:
    yield "as stored", {}
    for form in WeightFormat:
        if form is not WeightFormat.NONE:
            yield form.value, {"quantize": {COMPONENT: form}}


def offloads() -> Iterator[Way]:
    yield "on the device", {}
    for level in (Offload.BLOCK, Offload.LEAF):
        yield f"offloaded by {level}", {"offload": {COMPONENT: level}}
    both = {"offload": {COMPONENT: Offload.BLOCK}, "quantize": {COMPONENT: WeightFormat.FLOAT8_STORAGE}}
    yield "offloaded by block, float8-storage", both


def measured(make: Make, ways: Iterable[Way], jobs: Iterable[Job], repeats: int, tell: Callable[[str], Tell]) -> None:
    """``tell``: for a size. What cannot be here is told with the reason."""
    jobs = list(jobs)
    for way, changed in ways:
        try:
            engine = make(changed)
            engine.set_roles(frozenset({Role.DIT}))
        except LoadError as error:
            tell("")(way=way, skipped=f"{way}: {' '.join(str(error).split())[:200]}")
            continue
        for size, params, inputs in jobs:
            try:
                took = seconds(engine, params, inputs, repeats)
            except EngineError as error:
                tell(size)(way=way, skipped=f"{way} at {size}: {' '.join(str(error).split())[:200]}")
                continue
            tell(size)(way=way, seconds=took, job_peak_bytes=engine.peak_bytes())
        engine.close()
