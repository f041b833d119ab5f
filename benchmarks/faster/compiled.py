"""torch.compile in the background: how long until it serves, from nothing and from the disk, what it saves and changes.

python -m benchmarks.faster.compiled MODEL SIDE STEPS PICTURES
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.faster.drawing import PROMPTS, Drawing, compare, opened
from stage_server.engine.compiled import Compiler
from wire.params import ImageParams

LONGEST = 1800.0
"""Seconds for which anybody waits for a compiler."""


def measure(model: str, side: int, steps: int, pictures: int) -> Mapping[str, Any]:
    """In two processes that share a folder of compiled code, which is empty at first."""
    with tempfile.TemporaryDirectory(prefix="disagfusion-compiled-") as folder:
        first, second = (_in_a_process(folder, model, side, steps, pictures) for _ in range(2))
    return {"side": side, "steps": steps, **second, "from_nothing": first["seconds"], "from_disk": second["seconds"]}


def _in_a_process(folder: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.faster.compiled", *map(str, arguments)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def main() -> None:
    model, side, steps, pictures = sys.argv[1], *map(int, sys.argv[2:])
    compiler = Compiler()
    engine = opened(model, compiler=compiler)
    params = ImageParams(width=side, height=side, num_inference_steps=steps, guidance_scale=3.0)
    drawing = Drawing(engine, params, [PROMPTS[index % len(PROMPTS)] for index in range(pictures)])
    began = time.monotonic()
    for index in range(len(drawing)):  # prompts of all lengths
        drawing.draw(index, fast=True, num_inference_steps=1)
    if not compiler.wait_until_done(LONGEST):
        raise SystemExit(f"not compiled after {LONGEST:g} s")
    seconds = time.monotonic() - began
    before = _compiled()
    pairs = [(drawing.draw(index), drawing.draw(index, fast=True)) for index in range(len(drawing))]
    if _compiled() != before:
        raise SystemExit("something was compiled while pictures were drawn")
    print(json.dumps({"seconds": seconds, **asdict(compare(pairs))}))


def _compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


if __name__ == "__main__":
    main()
