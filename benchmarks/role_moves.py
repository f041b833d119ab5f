"""A server adds a role while it serves another: how long jobs of the role that stays wait for the device meanwhile.

python -m benchmarks.role_moves [--gigabytes 2] [--threads 1] [--repeats 5]

Encoder jobs one after the other on the real engine, on the CPU; the dit comes beside them: read from files with the
device held throughout (as it was until 0.5), read beside the jobs, and out of host memory. Once the bundled model, once
with a transformer of random weights of so many gigabytes. The files are in the system's cache.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from threading import Event, Lock, Thread
from time import perf_counter

import torch
from diffusers import ZImageTransformer2DModel

from stage_server.engine.base import DeviceTurn, StageJob
from stage_server.engine.checkpoint import BUNDLED
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.profiling.together import Stopwatch
from wire.params import ImageParams
from wire.types import Role

ENCODER, BOTH = frozenset({Role.ENCODER}), frozenset({Role.ENCODER, Role.DIT})
JOB = StageJob(Role.ENCODER, ImageParams(prompt="a red circle", width=256, height=256))
BYTES = 4
"""Of a weight in float32."""


class Device:
    """One job at a time, in the order of asking."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._next = Lock()
        self.turns: list[float] = []
        """Seconds for which others than jobs had it."""

    @contextmanager
    def job(self) -> Iterator[None]:
        with self._next, self._lock:
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._next, self._lock:
            began = perf_counter()
            yield
            self.turns.append(perf_counter() - began)


class Jobs:
    """Encoder jobs, one after the other, in a thread of its own."""

    def __init__(self, engine: DiffusersEngine, device: Device) -> None:
        self._engine = engine
        self._device = device
        self._stop = Event()
        self.seconds: list[tuple[float, float]] = []
        """When each began to wait, and how long it took with that."""
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Jobs:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            began = perf_counter()
            with self._device.job():
                self._engine.run(JOB, {}, Stopwatch())
            self.seconds.append((began, perf_counter() - began))


Change = Callable[[DiffusersEngine, Device], None]


def held(engine: DiffusersEngine, device: Device) -> None:
    with device.turn():
        engine.set_roles(BOTH, nullcontext)


def beside(engine: DiffusersEngine, device: Device) -> None:
    turn: DeviceTurn = device.turn
    engine.set_roles(BOTH, turn)


def measure(model: str, change: Change, *, warm: bool, repeats: int) -> dict[str, float]:
    """Medians, in seconds."""
    rows: list[dict[str, float]] = []
    for _ in range(repeats):
        engine, device = DiffusersEngine(model, weight_cache_bytes=1 << 40 if warm else 0), Device()
        engine.set_roles(ENCODER)
        if warm:
            engine.preload(BOTH)
        gc.collect()
        gc.freeze()
        with Jobs(engine, device) as jobs:
            while len(jobs.seconds) < 20:
                Event().wait(0.01)
            began = perf_counter()
            change(engine, device)
            ended = perf_counter()
            seen = len(jobs.seconds)
            while len(jobs.seconds) < seen + 2:
                Event().wait(0.01)
        before = [took for at, took in jobs.seconds if at + took < began]
        during = [took for at, took in jobs.seconds if at + took >= began and at <= ended]
        rows.append(
            {
                "usual": median(before),
                "median": median(during),
                "longest": max(during),
                "change": ended - began,
                "swap": device.turns[-1],
            }
        )
        engine.close()
    return {name: median(row[name] for row in rows) for name in rows[0]}


def enlarged(folder: Path, gigabytes: float) -> Path:
    """The bundled model with a transformer of random weights of about so many gigabytes, in float32."""
    target = Path(shutil.copytree(BUNDLED / "tiny-shapes", folder / "large"))
    config = json.loads((target / "transformer" / "config.json").read_text())
    shutil.rmtree(target / "transformer")
    config["dim"], config["n_heads"], config["n_kv_heads"] = 1024, 16, 16
    config["axes_dims"] = [16, 24, 24]
    with torch.device("meta"):
        one, two = (_parameters({**config, "n_layers": layers}) for layers in (1, 2))
    config["n_layers"] = max(1, round((gigabytes * 1e9 / BYTES - one) / (two - one)) + 1)
    transformer = ZImageTransformer2DModel.from_config(config)
    transformer.save_pretrained(target / "transformer")
    return target


def _parameters(config: dict[str, object]) -> int:
    return sum(parameter.numel() for parameter in ZImageTransformer2DModel.from_config(config).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"encoder jobs while the dit comes, CPU, {given.threads} threads; median of {given.repeats} runs, ms")
    print(f"{'':44} {'usual':>8} {'median':>8} {'longest':>8} {'change':>8} {'swap':>8}")
    ways = {"device held": (held, False), "beside the jobs": (beside, False), "out of host memory": (beside, True)}
    with tempfile.TemporaryDirectory(prefix="disagfusion-moves-") as folder:
        models = {"tiny-shapes": "tiny-shapes", f"{given.gigabytes:g} GB": str(enlarged(Path(folder), given.gigabytes))}
        for name, model in models.items():
            for way, (change, warm) in ways.items():
                found = measure(model, change, warm=warm, repeats=given.repeats)
                figures = " ".join(
                    f"{found[key] * 1e3:8.1f}" for key in ("usual", "median", "longest", "change", "swap")
                )
                print(f"{name + ', ' + way:44} {figures}", flush=True)


if __name__ == "__main__":
    main()
