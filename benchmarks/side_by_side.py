"""Row 8: the bundled model on this machine's cores, ours against each baseline, in order of arrival.

Ours is ``python -m gateway --local`` with a key, as ``make serve`` starts it; every service may use every core, and one
alone is asked at a time. They take turns, in rounds. Prompts are never repeated, and no request names a seed.

python -m benchmarks.side_by_side
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from benchmarks.gateway_processes import KEY
from benchmarks.http_load import ask, quantile
from benchmarks.ports import free_port
from benchmarks.rows import Goal, Row, show

COMMAND = "python -m benchmarks.side_by_side"
CLIENTS = {1: 0.97, 4: 1.0, 16: 1.0}
"""At a time → the least share of the best baseline's throughput."""
ROUNDS = 3
REQUESTS = 24
"""In a round."""
START_SECONDS = 300.0
OURS = "ours"
PLAIN = "diffusers behind FastAPI"
RAY = "Ray Serve, three stages"

Figures = tuple[list[float], float]
"""Seconds that each request took, and all of them together."""


def rows(requests: int = REQUESTS) -> list[Row]:
    found = []
    numbers = count()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {OURS: stack.enter_context(_ours(folder)), PLAIN: stack.enter_context(_baseline("plain"))}
        if find_spec("ray"):
            ports[RAY] = stack.enter_context(_baseline("ray_serve"))
        else:
            print(f"{RAY} is left out: pip install -c constraints.txt '.[bench-ray]'")
        for port in ports.values():
            asyncio.run(_load(port, 4, 4, numbers))  # until all is warm
        for clients, least in CLIENTS.items():
            figures: dict[str, Figures] = {name: ([], 0.0) for name in ports}
            for _ in range(ROUNDS):
                for name, port in ports.items():
                    took, lasted = asyncio.run(_load(port, max(requests, clients), clients, numbers))
                    figures[name] = (figures[name][0] + took, figures[name][1] + lasted)
            found += _rows(clients, least, figures)
    return found


def _rows(clients: int, least: float, figures: dict[str, Figures]) -> list[Row]:
    rates = {name: len(took) / lasted for name, (took, lasted) in figures.items()}
    tails = {name: quantile(took, 0.99) for name, (took, _) in figures.items()}
    best = max(rate for name, rate in rates.items() if name != OURS)
    shortest = min(tail for name, tail in tails.items() if name != OURS)
    case = f"256², 12 steps, {clients} at a time"
    found = [
        _row("throughput over the best baseline's", case, rates[OURS] / best, "×", Goal(">=", least)),
        _row("p99 latency over the best baseline's", case, tails[OURS] / shortest, "×", Goal("<=", 1.0)),
    ]
    for name in figures:
        found.append(_row("throughput", f"{case}: {name}", rates[name], "requests/s"))
        found.append(_row("p99 latency", f"{case}: {name}", tails[name], "s"))
    return found


async def _load(port: int, requests: int, clients: int, numbers: Iterator[int]) -> Figures:
    left = iter(range(requests))
    took: list[float] = []

    async def client() -> None:
        for _ in left:
            body = {"prompt": f"a red circle, number {next(numbers)}", "size": "256x256", "num_inference_steps": 12}
            took.append(await ask(port, json.dumps(body | {"guidance_scale": 3.0}).encode()))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return took, time.perf_counter() - began


@contextmanager
def _ours(folder: Path) -> Iterator[int]:
    port = free_port()
    settings = {"STATE_DIR": str(folder), "ORDER": "first-come", "API_KEYS": f'{{"tenant": "{KEY}"}}'}
    environment = {f"DISAGFUSION_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "gateway", "--local", "--port", str(port), "--log-level", "warning"]
    with _process(command, port, environment):
        yield port


@contextmanager
def _baseline(name: str) -> Iterator[int]:
    port = free_port()
    with _process([sys.executable, "-m", f"benchmarks.baselines.{name}", str(port)], port, {}):
        yield port


@contextmanager
def _process(command: Sequence[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
    try:
        _await_ready(process, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Raises ``RuntimeError`` where it ends, ``TimeoutError`` where it takes too long."""
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise TimeoutError(f"{process.args!r} is not ready after {START_SECONDS:g} s")


def _row(measure: str, case: str, value: float, unit: str, goal: Goal | None = None) -> Row:
    return Row(8, measure, case, value, unit, goal, "torch, tiny-shapes", COMMAND)


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()
