"""What looking for NaN costs beside the stage whose outputs are looked at, on the real engine.

python -m benchmarks.finite_check [MODEL [DEVICE [DTYPE]]]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch

from stage_server.engine.base import StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.finite import FiniteCheck
from wire.params import ImageParams
from wire.types import REQUIRED, Role

REPEATS = 5


class Stopwatch:
    """Seconds inside a method of ``FiniteCheck``, over all jobs of one repeat."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> None:
            began = perf_counter()
            method(*arguments)
            self.seconds += perf_counter() - began

        return call


def measure(engine: DiffusersEngine, side: int) -> dict[Role, tuple[float, float]]:
    """Role → median seconds of the stage with the check, and of the check alone."""
    params = ImageParams(prompt="a large red circle", width=side, height=side)
    found: dict[Role, list[tuple[float, float]]] = {role: [] for role in REQUIRED}
    for _ in range(REPEATS + 1):
        inputs: dict[str, Any] = {}
        for role in REQUIRED:
            watch = Stopwatch()
            look, settle = watch.timed(FiniteCheck.look), watch.timed(FiniteCheck.settle)
            with patch.object(FiniteCheck, "look", look), patch.object(FiniteCheck, "settle", settle):
                began = perf_counter()
                outputs = engine.run(StageJob(role, params), inputs, Unwatched())
                found[role].append((perf_counter() - began, watch.seconds))
            inputs = {name: value for port in outputs.values() for name, value in port.items()}
    return {role: (median(t for t, _ in times[1:]), median(c for _, c in times[1:])) for role, times in found.items()}


def main() -> None:
    model, device, dtype = [*sys.argv[1:], *("tiny-shapes", "cpu", "float32")[len(sys.argv) - 1 :]]
    torch.set_num_threads(1)
    engine = DiffusersEngine(model, device=device, dtype=dtype)
    engine.set_roles(frozenset(REQUIRED))
    print(f"{model} on {engine.device_class}, {dtype}")
    for side in (128, 256, 512):
        for role, (stage, check) in measure(engine, side).items():
            share = f"{1e3 * check:6.3f} ms, {check / stage:.2%}"
            print(f"{side}x{side} {role:8} {1e3 * stage:9.2f} ms, of it the check {share}")


if __name__ == "__main__":
    main()
