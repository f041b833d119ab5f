"""What a LoRA costs a denoising job, and what allowing some costs jobs without: processor time on the real engine.

python -m benchmarks.adapters [RANK]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from safetensors.torch import save_file

from stage_server.engine.base import StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.low_rank import is_adaptable
from wire.params import AdapterUse, ImageParams
from wire.types import REQUIRED, Role

MODEL, SIDE, STEPS = "tiny-shapes", 256, 6
REPEATS = 15


def opened(adapters: Mapping[str, str]) -> DiffusersEngine:
    engine = DiffusersEngine(MODEL, adapters=adapters, adapter_bytes=1 << 30)
    engine.set_roles(frozenset(REQUIRED))
    return engine


def write(path: Path, rank: int) -> int:
    """A random adapter of every linear layer in the transformer's blocks; how many there are."""
    module = opened({})._pipeline.transformer
    layers = {
        name: layer for name, layer in module.named_modules() if is_adaptable(layer) and name.startswith("layers")
    }
    state = {}
    for name, layer in layers.items():
        outputs, inputs = layer.weight.shape
        state[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, inputs)
        state[f"transformer.{name}.lora_B.weight"] = torch.randn(outputs, rank)
    save_file(state, path)
    return len(layers)


def params(*uses: AdapterUse) -> ImageParams:
    given: dict[str, Any] = {"prompt": "a large red circle", "width": SIDE, "height": SIDE, "seed": 1}
    return ImageParams(num_inference_steps=STEPS, guidance_scale=3.0, adapters=uses, **given)


def main() -> None:
    rank = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "style.safetensors"
        layers = write(path, rank)
        plain, allowing = opened({}), opened({"style": str(path)})
        use = AdapterUse("style", allowing.describe().adapters[0].digest, 1.0)
        given = dict(plain.run(StageJob(Role.ENCODER, params()), {}, Unwatched())[Role.DIT])
        began = perf_counter()
        allowing._adapters.load((use,), ("transformer",))
        print(f"rank {rank}, {layers} layers, read in {1e3 * (perf_counter() - began):.0f} ms")
        kinds = {"none allowed": (plain, ()), "allowed, not used": (allowing, ()), "used": (allowing, (use,))}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(REPEATS):
            for kind, (engine, uses) in kinds.items():
                spent = process_time()
                engine.run(StageJob(Role.DIT, params(*uses)), given, Unwatched())
                seconds[kind].append(process_time() - spent)
        least = median(seconds["none allowed"])
        for kind, spent in seconds.items():
            print(f"{kind:18} {1e3 * median(spent):7.1f} ms a job of {STEPS} steps, {median(spent) / least:.2f} x")


if __name__ == "__main__":
    main()
