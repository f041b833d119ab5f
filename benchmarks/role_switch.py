"""What a change of roles takes on the real engine: weights loaded from files, and out of the host's cache.

python -m benchmarks.role_switch [MODEL [DEVICE [DTYPE]]]
"""

from __future__ import annotations

import gc
import sys
from statistics import median
from time import perf_counter

import torch

from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.types import Role

REPEATS = 9
SETS = (frozenset({Role.DIT}), frozenset({Role.ENCODER, Role.DECODER}))


def measure(model: str, device: str, dtype: str, cache_bytes: int) -> dict[str, float]:
    """Median seconds until the other roles are loaded, warm, and the former ones gone."""
    engine = DiffusersEngine(model, device=device, dtype=dtype, weight_cache_bytes=cache_bytes)
    gc.freeze()  # as a stage server does
    times: dict[str, list[float]] = {}
    for number in range(2 * (REPEATS + 1)):
        roles = SETS[number % 2]
        began = perf_counter()
        engine.set_roles(roles)
        times.setdefault(" + ".join(sorted(roles)), []).append(perf_counter() - began)
    engine.close()
    return {roles: median(found[1:]) for roles, found in times.items()}


def main() -> None:
    model, device, dtype = [*sys.argv[1:], *("tiny-shapes", "cpu", "float32")[len(sys.argv) - 1 :]]
    torch.set_num_threads(1)
    loaded = measure(model, device, dtype, 0)
    cached = measure(model, device, dtype, 1 << 40)
    print(f"{model} on {device} in {dtype}, median of {REPEATS}; files in the system's cache")
    print(f"{'to':24} {'loaded':>10} {'from host':>10}")
    for roles, seconds in loaded.items():
        print(f"{roles:24} {seconds * 1e3:7.1f} ms {cached[roles] * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
