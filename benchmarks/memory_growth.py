"""Row 12: memory of every process through a thousand requests, eight emulated servers.

Resident bytes are looked at after every hundredth of the requests. The last tenth of the looks is compared with the
second: the first fills caches and allocators.

python -m benchmarks.memory_growth
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from statistics import fmean

from benchmarks import fleet
from benchmarks.http_load import ask
from benchmarks.rows import Goal, Row, show
from benchmarks.scheduling import workloads
from scheduler.sim.workload import Phase

COMMAND = "python -m benchmarks.memory_growth"
REQUESTS = 1000
TENTHS, LOOKS = 10, 10
UNDER_WAY = 16
FASTER = 100.0
MOST = 1.02


def rows(requests: int = REQUESTS) -> list[Row]:
    phase = Phase(1.0, workloads.MIXES["half 1-step"])
    with tempfile.TemporaryDirectory() as name, fleet.running(Path(name), phase, FASTER) as running:
        looks = asyncio.run(_looks(running, phase, requests))
    case = f"{requests} requests through {fleet.SERVERS} servers"
    found = []
    for name, bytes_ in looks.items():
        second, last = fmean(bytes_[LOOKS : 2 * LOOKS]), fmean(bytes_[-LOOKS:])
        found.append(_row("resident memory, last tenth over the second", f"{case}: {name}", last / second, "×",
                          Goal("<=", MOST)))  # fmt: skip
    most = max(fmean(bytes_[-LOOKS:]) for bytes_ in looks.values())
    return [*found, _row("resident memory at the end", f"{case}: the largest process", most / 1e6, "MB", None)]


async def _looks(running: fleet.Fleet, phase: Phase, requests: int) -> dict[str, list[float]]:
    """Resident bytes of every process, and of those that it started, after each hundredth."""
    kinds = [kind for _, kind in phase.mix]
    looks: dict[str, list[float]] = {name: [] for name in running.processes}
    seed, batch = 0, max(1, requests // (TENTHS * LOOKS))
    free = asyncio.Semaphore(UNDER_WAY)

    async def one(number: int) -> None:
        async with free:
            await ask(running.gateway.port, fleet.body(kinds[number % len(kinds)], number))

    for _ in range(TENTHS * LOOKS):
        await asyncio.gather(*(one(seed + number) for number in range(batch)))
        seed += batch
        for name, process in running.processes.items():
            family = [process, *process.children(recursive=True)]
            looks[name].append(sum(each.memory_info().rss for each in family))
    return looks


def _row(measure: str, case: str, value: float, unit: str, goal: Goal | None) -> Row:
    return Row(12, measure, case, value, unit, goal, "emulated", COMMAND)


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()
