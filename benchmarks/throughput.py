"""Row 3: throughput of the real pipeline under a backlog, eight emulated servers, against the fluid bound.

The bound is that of the mix that was finished in the time that counts; each job has its device alone.

python -m benchmarks.throughput
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path

from benchmarks import fleet
from benchmarks.http_load import ask, clients
from benchmarks.rows import Goal, Row, show
from benchmarks.scheduling import workloads
from scheduler.sim.bound import fluid_rate
from scheduler.sim.workload import Phase, size_class

COMMAND = "python -m benchmarks.throughput"
MIX = "half 1-step"
FASTER = 4.0
UNDER_WAY = 64
SECONDS = 60
WARM_UP = 0.25
"""Of the time, not counted; nor is what is still under way at its end."""
SEED = 1
LEAST = 0.97


def rows(seconds: int = SECONDS) -> list[Row]:
    phase = Phase(1.0, workloads.MIXES[MIX])
    with tempfile.TemporaryDirectory() as name, fleet.running(Path(name), phase, FASTER) as running:
        before = running.gateway.processor_seconds()
        finished = asyncio.run(_loaded(running.gateway.port, phase, seconds))
        spent = running.gateway.processor_seconds() - before
    counted = [kind for at, kind in finished if at >= seconds * WARM_UP]
    rate = len(counted) / (seconds * (1 - WARM_UP))
    bound = fluid_rate(running.servers, workloads.counted(phase, counted))
    case = f"{fleet.SERVERS} servers, Qwen-Image {FASTER:g} times faster, {MIX}, {UNDER_WAY} under way, {seconds} s"
    return [
        _row("throughput over the fluid bound", case, rate / bound, "×", Goal(">=", LEAST)),
        _row("throughput", case, rate, "requests/s"),
        _row("one core busy with the gateway", case, spent / seconds, "of the time"),
    ]


async def _loaded(port: int, phase: Phase, seconds: float) -> list[tuple[float, str]]:
    """When each request was finished, counted from the start, and its kind."""
    chance, seed = random.Random(SEED), 0
    weights, kinds = zip(*phase.mix, strict=True)
    finished: list[tuple[float, str]] = []
    began = time.monotonic()

    async def client() -> None:
        nonlocal seed
        while True:
            (kind,) = chance.choices(kinds, weights)
            seed += 1
            await ask(port, fleet.body(kind, seed))
            finished.append((time.monotonic() - began, size_class(kind)))

    async with clients(client, UNDER_WAY) as go_on:
        await go_on(seconds)
    return [(at, kind) for at, kind in finished if at < seconds]


def _row(measure: str, case: str, value: float, unit: str, goal: Goal | None = None) -> Row:
    return Row(3, measure, case, value, unit, goal, "emulated", COMMAND, (SEED,))


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()
