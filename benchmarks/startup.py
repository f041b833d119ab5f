"""How long ``python -m gateway --local`` takes from nothing to its first picture, and to its answering ``/healthz``.

Beside it, what one process takes to import torch and diffusers, which every stage server has to do. They take turns;
files are in the system's cache from the first round on, which is not counted.

python -m benchmarks.startup
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.ports import free_port
from benchmarks.rows import Goal, Row, show

ROUNDS = 3
PATIENCE_SECONDS = 300.0
POLL_SECONDS = 0.02
COMMAND = "python -m benchmarks.startup"
IMPORTS = "import torch, diffusers"
BODY = {"prompt": "a large red circle in the center on a white background", "seed": 1}


def rows(rounds: int = ROUNDS) -> list[Row]:
    imports, healthy, drawn = list[float](), list[float](), list[float]()
    for _ in range(1 + rounds):
        imports.append(_import_seconds())
        health, picture = _local_seconds()
        healthy.append(health)
        drawn.append(picture)
    one, health, picture = (median(found[1:]) for found in (imports, healthy, drawn))
    return [
        _row("first picture of --local, over importing torch and diffusers once", picture / one, "×", Goal("<=", 2.5)),
        _row("first picture of --local", picture, "s"),
        _row("/healthz of --local answers", health, "s"),
        _row("one process imports torch and diffusers", one, "s"),
    ]


def _import_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def _local_seconds() -> tuple[float, float]:
    """Until it answers, and until it has drawn a picture."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "--local", "--port", str(port), "--log-level", "warning"],
            env=os.environ | {"DISAGFUSION_STATE_DIR": str(Path(folder) / "state")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            healthy = _until(lambda: _answers(f"{url}/healthz")) - began
            _until(lambda: _answers(f"{url}/readyz"))
            _draw(url)
            return healthy, time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(60)


def _draw(url: str) -> None:
    request = urllib.request.Request(  # noqa: S310
        f"{url}/v1/images/generations", json.dumps(BODY).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310
        assert json.load(answer)["data"][0]["b64_json"]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _until(condition: Callable[[], bool]) -> float:
    """When it first held, on ``perf_counter``."""
    limit = time.perf_counter() + PATIENCE_SECONDS
    while not condition():
        if time.perf_counter() > limit:
            raise TimeoutError(f"the service is not ready after {PATIENCE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    return time.perf_counter()


def _row(measure: str, value: float, unit: str, goal: Goal | None = None) -> Row:
    return Row("start-up", measure, f"{os.cpu_count()} cores", value, unit, goal, "torch, tiny-shapes", COMMAND, ())


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()
