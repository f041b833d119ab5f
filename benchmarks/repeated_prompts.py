"""Row 13: what repeated prompts save. The bundled model, a server for each role, with encodings kept and without.

Requests one after another, of which a known share repeats an earlier prompt. How often the encoder ran and for how long
is what ``server-timing`` says of each request. Both services run at once and take turns.

python -m benchmarks.repeated_prompts
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.ports import free_port
from benchmarks.rows import Goal, Row, show

REQUESTS = 60
SHARES = (0.0, 0.5, 0.9)
"""Of requests that repeat a prompt."""
SEED = 1
START_SECONDS = 180.0
COMMAND = "python -m benchmarks.repeated_prompts"
_ENCODER = re.compile(r"encoder\.compute;dur=([0-9.]+)")


def rows(requests: int = REQUESTS) -> list[Row]:
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept, plain = (
            stack.enter_context(_service(folder / name, nbytes)) for name, nbytes in (("on", 1 << 28), ("off", 0))
        )
        for url in (kept, plain):
            _ask(url, "warm up", 0)
        for share in SHARES:
            found += _rows(*_compared(kept, plain, share, requests))
    return found


def _compared(kept: str, plain: str, share: float, requests: int) -> tuple[list[_Told], list[_Told], int]:
    """What was told of every request, with encodings kept and without, and how many of them repeat a prompt."""
    chance, prompts = random.Random(f"{SEED} {share}"), list[str]()
    ours, theirs, repeated = list[_Told](), list[_Told](), 0
    for number in range(requests):
        again = bool(prompts) and chance.random() < share
        repeated += again
        if not again:
            prompts.append(f"a red circle, number {number} of the {share} run")
        prompt = chance.choice(prompts) if again else prompts[-1]
        ours.append(_ask(kept, prompt, number))
        theirs.append(_ask(plain, prompt, number))
        assert ours[-1].picture == theirs[-1].picture, "a kept encoding changed a picture"
    return ours, theirs, repeated


def _rows(ours: list[_Told], theirs: list[_Told], repeated: int) -> list[Row]:
    ran, would = (sum(told.encoder_ms is not None for told in each) for each in (ours, theirs))
    case = f"{repeated} of {len(ours)} requests repeat a prompt"
    p50 = [median(told.seconds for told in each) * 1e3 for each in (ours, theirs)]
    encoding = median(told.encoder_ms for told in theirs if told.encoder_ms is not None)
    return [
        _row("encoder jobs saved, over requests that repeat a prompt", case, (would - ran) / max(1, repeated), "×",
             Goal(">=", 1.0) if repeated else None),
        _row("p50 latency, encodings kept", case, p50[0], "ms"),
        _row("p50 latency, nothing kept", case, p50[1], "ms"),
        _row("p50 of the encoder's compute, nothing kept", case, encoding, "ms"),
    ]  # fmt: skip


class _Told:
    def __init__(self, seconds: float, encoder_ms: float | None, picture: str) -> None:
        self.seconds = seconds
        self.encoder_ms = encoder_ms
        """None where the encoder did not run."""
        self.picture = picture


def _ask(url: str, prompt: str, seed: int) -> _Told:
    body = {"prompt": prompt, "size": "64x64", "num_inference_steps": 1, "seed": seed}
    request = urllib.request.Request(  # noqa: S310
        f"{url}/v1/images/generations", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:  # noqa: S310
        picture = json.load(answer)["data"][0]["b64_json"]
        seconds = time.perf_counter() - began
        encoder = _ENCODER.search(answer.headers["server-timing"])
    return _Told(seconds, float(encoder[1]) if encoder else None, picture)


@contextmanager
def _service(folder: Path, nbytes: int) -> Iterator[str]:
    port = free_port()
    settings = {"DISAGFUSION_STATE_DIR": str(folder), "DISAGFUSION_EMBEDDING_CACHE_BYTES": str(nbytes)}
    command = [sys.executable, "-m", "gateway", "--local", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, env=os.environ | settings)
    try:
        _await_ready(f"http://127.0.0.1:{port}/readyz")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _await_ready(url: str) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(f"{url} is not ready after {START_SECONDS:g} s")


def _row(measure: str, case: str, value: float, unit: str, goal: Goal | None = None) -> Row:
    return Row(13, measure, case, value, unit, goal, "torch, tiny-shapes", COMMAND, (SEED,))


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()
