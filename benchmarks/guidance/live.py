"""Latency of one guided request alone on real processes: the bundled model, dit servers with a core each. Measured."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.http_load import ask
from benchmarks.on_cores import running
from benchmarks.ports import free_port

HEAD = ("size", "steps", "pictures", "one server", "two servers", "times as fast", "equal to the byte")


def rows(cases: Sequence[tuple[int, int]], pictures: int, rounds: int) -> Iterator[tuple[str, ...]]:
    """Both services stand ready at once, and take turns: what else the machine does befalls both."""
    with _service(share=False) as alone, _service(share=True) as shared:
        for port in (alone, shared):
            asyncio.run(_latencies(port, *cases[0], range(2)))  # until all is warm
        for side, steps in cases:
            took: dict[int, list[float]] = {alone: [], shared: []}
            for number in range(rounds):
                for port in took:
                    seeds = range(number * pictures, (number + 1) * pictures)
                    took[port] += asyncio.run(_latencies(port, side, steps, seeds))
            one, two = median(took[alone]), median(took[shared])
            same = _picture(alone, side, steps) == _picture(shared, side, steps)
            yield (
                f"{side}²",
                str(steps),
                str(pictures * rounds),
                f"{one:.2f} s",
                f"{two:.2f} s",
                f"{one / two:.2f}",
                "yes" if same else "**no**",
            )


async def _latencies(port: int, side: int, steps: int, seeds: range) -> list[float]:
    return [await ask(port, _body(side, steps, seed)) for seed in seeds]


def _body(side: int, steps: int, seed: int) -> bytes:
    asked = {"prompt": "a red circle", "size": f"{side}x{side}", "num_inference_steps": steps, "seed": seed}
    return json.dumps(asked | {"guidance_scale": 3.0}).encode()


def _picture(port: int, side: int, steps: int) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/images/generations",
        _body(side, steps, 1),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        data: str = json.load(response)["data"][0]["b64_json"]
    return data


@contextmanager
def _service(*, share: bool) -> Iterator[int]:
    """Two dit servers, each bound to a core of its own as far as there are; the rest may use any."""
    http, control = free_port(), free_port()
    given = {name: value for name, value in os.environ.items() if not name.startswith("DISAGFUSION")}
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="disagfusion-") as folder:
        variables = {
            "CONTROL_BIND": f"tcp://127.0.0.1:{control}",
            "STATE_DIR": folder,
            "SHARE_GUIDANCE": "true" if share else "false",
        }
        settings = {f"DISAGFUSION_{name}": value for name, value in variables.items()}
        stage = [sys.executable, "-m", "stage_server", "--model", "tiny-shapes", "--threads", "1", "--pin"]
        stage += ["--gateway", f"tcp://127.0.0.1:{control}", "--role"]
        processes = [
            ([sys.executable, "-m", "gateway", "--port", str(http)], given | settings, cores),
            ([*stage, "encoder,decoder"], given, cores),
            *(([*stage, "dit"], given, [cores[k % len(cores)]]) for k in range(2)),
        ]
        with running(processes, http, Path(folder, "log")):
            yield http
