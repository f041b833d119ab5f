"""Row 14: a thousand emulated stage servers on one gateway, over real sockets; and how many it keeps busy.

python -m benchmarks.large_fleet

The servers are ``benchmarks.swarm``'s, many in a process. Their jobs take what FLUX.1 [dev] at 1024² in 28 steps takes
on an H100. A heartbeat is late where its acknowledgement comes longer after it was due than heartbeats are apart. The
time of a decision is the scheduler's own, of as many servers with everything else simulated.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from benchmarks import fleet
from benchmarks.gateway_processes import PROFILE, Subject, await_roles, service
from benchmarks.http_load import ask, clients
from benchmarks.rows import Goal, Row, show
from benchmarks.scheduling.decision_time import measure
from benchmarks.swarm import Figures
from scheduler.cost.model import CostModel
from scheduler.cost.work import Target
from scheduler.sim.metrics import quantile
from scheduler.sim.suite import bundled_profile
from scheduler.sim.workload import Kind
from wire.types import REQUIRED, Role

COMMAND = "python -m benchmarks.large_fleet"
SERVERS = 1000
IN_PROCESS = 250
FLEETS = (64, 128, 256, 512, 1000)
UNDER_WAY = 1.25
"""Requests for each server."""
BUSY = 0.9
"""Share of the time for which the devices of a fleet compute that counts as kept busy."""
SECONDS = 15
WARM_UP_SECONDS = 10.0
EVENTS = 10_000
KIND = Kind("picture", 1024, 1024, 28)


def rows(servers: int = SERVERS, seconds: int = SECONDS) -> list[Row]:
    allow_files()
    took = _job_seconds()
    found = _at_once(servers, took)
    busy: list[Row] = []
    for number in (each for each in FLEETS if each <= servers):
        share, figures, processor = _kept_busy(number, took, seconds)
        if share < BUSY or figures.late or figures.lost:
            print(f"{number} servers: busy {share:.2f}, {figures.late} late, {figures.lost} lost")
            break
        case = f"jobs of {sum(took.values()):.2f} s, devices busy for {BUSY:g} of the time, no late heartbeat"
        busy = [
            _row("largest fleet kept busy", case, number, "servers"),
            _row("one core busy with the gateway", f"{number} servers kept busy", processor, "of the time"),
        ]
    events = [each for some in measure("elastic", servers, servers, EVENTS).values() for each in some]
    case = f"{servers} servers, as many requests waiting"
    decisions = Row(
        14, "p99 of a decision", case, quantile(events, 0.99) / 1e3, "ms", Goal("<", 1.0), "simulated", COMMAND
    )
    return [*found, *busy, decisions]


def _at_once(servers: int, took: dict[Role, float]) -> list[Row]:
    """A job for each server, all at the same moment."""
    with _running(servers, took) as (gateway, swarms):
        before, began = gateway.processor_seconds(), time.monotonic()
        asyncio.run(_burst(gateway.port, servers))
        lasted = time.monotonic() - began
        figures, spent = swarms.figures(), gateway.processor_seconds() - before
    case = f"{servers} servers, a request for each at once"
    return [
        _row("late heartbeats", case, figures.late + figures.lost, "heartbeats", Goal("<=", 0)),
        _row("longest wait for a heartbeat's acknowledgement", case, figures.worst, "s"),
        _row("until all are answered, over one request's stages", case, lasted / sum(took.values()), "×"),
        _row("one core busy with the gateway", case, spent / lasted, "of the time"),
    ]


def _kept_busy(servers: int, took: dict[Role, float], seconds: float) -> tuple[float, Figures, float]:
    """Share of the time for which devices compute, the swarm's figures, processor seconds per second."""
    with _running(servers, took) as (gateway, swarms):
        return asyncio.run(_load(gateway, swarms, round(servers * UNDER_WAY), servers, seconds))


async def _burst(port: int, requests: int) -> None:
    await asyncio.gather(*(ask(port, fleet.body(KIND, number)) for number in range(requests)))


async def _load(
    gateway: Subject, swarms: Swarms, number: int, servers: int, seconds: float
) -> tuple[float, Figures, float]:
    seeds = count(1)

    async def client() -> None:
        while True:
            await ask(gateway.port, fleet.body(KIND, next(seeds)))

    async with clients(client, number) as go_on:
        await go_on(WARM_UP_SECONDS)
        swarms.figures()
        before, began = gateway.processor_seconds(), time.monotonic()
        await go_on(seconds)
        lasted, spent = time.monotonic() - began, gateway.processor_seconds() - before
        figures = swarms.figures()
    return figures.computed / (servers * lasted), figures, spent / lasted


class Swarms:
    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def figures(self) -> Figures:
        """Of all of them, since the last call."""
        whole = Figures()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in self._processes:
            assert process.stdout is not None
            one = Figures(**json.loads(process.stdout.readline()))
            worst = max(whole.worst, one.worst)
            whole = Figures(*(a + b for a, b in zip(vars(whole).values(), vars(one).values(), strict=True)))
            whole.worst = worst
        return whole


@contextmanager
def _running(servers: int, took: dict[Role, float]) -> Iterator[tuple[Subject, Swarms]]:
    """The gateway and so many servers, all of which have joined. It would log each of them that leaves at the end."""
    settings = {"EMBEDDING_CACHE_BYTES": "0", "MAX_WAITING_REQUESTS": str(10 * servers)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway, control = stack.enter_context(service(folder / "state", settings, log_level="error"))
        processes = []
        for first in range(0, servers, IN_PROCESS):
            number = min(IN_PROCESS, servers - first)
            command = [sys.executable, "-m", "benchmarks.swarm", control, f"s{first}-", str(number), json.dumps(took)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(end_swarm, process)
            processes.append(process)
        await_roles(gateway, servers * len(REQUIRED))
        swarms = Swarms(processes)
        swarms.figures()
        yield gateway, swarms


def end_swarm(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _job_seconds() -> dict[Role, float]:
    profile = bundled_profile(PROFILE)
    target = Target.of(profile.model.name, profile.device_class, profile.precision)
    cost = CostModel([profile])
    return {work.role: cost.seconds(work, target) for work in KIND.works()}


def allow_files() -> None:
    """Each server and each client has a connection; processes that are started have the same limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _row(measure: str, case: str, value: float, unit: str, goal: Goal | None = None) -> Row:
    return Row(14, measure, case, value, unit, goal, "emulated", COMMAND)


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()
