"""Latency of one guided request alone on real processes: the bundled model, dit servers with a core each. Measured."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.on_cores import running
from benchmarks.ports import free_port

HEAD = (
    "size", "steps", "pictures",
    "one server", "two servers", "times as fast", "equal to the byte",
    "denoising: one server", "one server, the other busy", "two servers", "times as fast",
)  # fmt: skip
Ask = Callable[[int, range], "list[Answer]"]
"""Port and seeds."""
_DENOISING = re.compile(r"\bdit\.0\.compute;dur=([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Answer:
    picture: str
    seconds: float
    """The whole request."""
    denoising: float
    """Seconds of it, as ``Server-Timing`` says."""


def rows(cases: Sequence[tuple[int, int]], pictures: int, rounds: int) -> Iterator[tuple[str, ...]]:
    """Both services stand ready at once, and take turns: what else the machine does befalls both.

    The third turn is of two requests at once on the service whose servers do not help each other. What those lose to
    each other in caches and memory, halves of steps lose as well, and no way of swapping them gives it back.
    """
    with _service(share=False) as alone, _service(share=True) as shared, ThreadPoolExecutor(2) as pool:
        for port in (alone, shared):
            for seed in range(2):  # until all is warm
                _answer(port, *cases[0], seed)
        for side, steps in cases:

            def one_by_one(port: int, seeds: range, side: int = side, steps: int = steps) -> list[Answer]:
                return [_answer(port, side, steps, seed) for seed in seeds]

            def two_at_once(port: int, seeds: range, ask: Ask = one_by_one) -> list[Answer]:
                return [answer for answers in pool.map(ask, (port, port), (seeds, seeds)) for answer in answers]

            turns: tuple[tuple[int, Ask], ...] = ((alone, one_by_one), (shared, one_by_one), (alone, two_at_once))
            answers: list[list[Answer]] = [[] for _ in turns]
            for number in range(rounds):
                for found, (port, ask) in zip(answers, turns, strict=True):
                    found += ask(port, range(number * pictures, (number + 1) * pictures))
            yield (f"{side}²", str(steps), str(pictures * rounds), *_compared(*answers))


def _compared(one: list[Answer], two: list[Answer], busy: list[Answer]) -> tuple[str, ...]:
    whole = [median(answer.seconds for answer in answers) for answers in (one, two)]
    denoising = [median(answer.denoising for answer in answers) for answers in (one, busy, two)]
    same = [answer.picture for answer in one] == [answer.picture for answer in two]
    return (
        *(f"{seconds:.2f} s" for seconds in whole),
        f"{whole[0] / whole[1]:.2f}",
        "yes" if same else "**no**",
        *(f"{seconds:.2f} s" for seconds in denoising),
        f"{denoising[0] / denoising[2]:.2f}",
    )


def _answer(port: int, side: int, steps: int, seed: int) -> Answer:
    asked = {"prompt": "a red circle", "size": f"{side}x{side}", "num_inference_steps": steps, "seed": seed}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/images/generations",
        json.dumps(asked | {"guidance_scale": 3.0}).encode(),
        {"content-type": "application/json"},
    )
    began = perf_counter()
    with urllib.request.urlopen(request) as response:  # noqa: S310
        body = response.read()
    seconds = perf_counter() - began
    said = _DENOISING.search(response.headers.get("server-timing", ""))
    if said is None:
        raise SystemExit("the gateway does not say how long the dit job took: DISAGFUSION_EXPOSE_STAGE_TIMINGS is off")
    return Answer(json.loads(body)["data"][0]["b64_json"], seconds, float(said[1]) / 1e3)


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
            "EMBEDDING_CACHE_BYTES": "0",  # every request asks for the same, and is to pass all three stages
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
