"""A thousand emulated stage servers whose gateway is killed: how long until all are at the other one.

python -m benchmarks.gateway_loss [SERVERS]

The servers are ``benchmarks.swarm``'s, many in a process, which share the machine with the gateways.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.gateway_processes import Subject, await_roles, service
from benchmarks.large_fleet import IN_PROCESS, allow_files, end_swarm
from benchmarks.rows import Goal, Row, show
from wire.types import REQUIRED

COMMAND = "python -m benchmarks.gateway_loss"
SERVERS = 1000
PATIENCE = 60.0


def rows(servers: int = SERVERS) -> list[Row]:
    allow_files()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        first, control = stack.enter_context(service(folder / "first", log_level="error"))
        second, other = stack.enter_context(service(folder / "second", log_level="error"))
        _await_health(second)
        swarms = []
        for number in range(0, servers, IN_PROCESS):
            count = min(IN_PROCESS, servers - number)
            seconds = json.dumps(dict.fromkeys(REQUIRED, 1.0))
            command = [
                sys.executable,
                "-m",
                "benchmarks.swarm",
                f"{control},{other}",
                f"s{number}-",
                str(count),
                seconds,
            ]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(end_swarm, process)
            swarms.append(process)
        await_roles(first, servers * len(REQUIRED))
        subjects = [Subject("servers", psutil.Process(swarm.pid), 0) for swarm in swarms]
        before, others = second.processor_seconds(), sum(each.processor_seconds() for each in subjects)
        killed = time.perf_counter()
        first.process.kill()
        took = _until_all_have_moved(swarms, servers) - killed
        spent = second.processor_seconds() - before
        others = sum(each.processor_seconds() for each in subjects) - others
    case = f"{servers} servers, their gateway killed"
    return [
        _row("until all are at the other gateway", case, took, "s", Goal("<=", 2.0)),
        _row("processor time of that gateway for each server", case, spent / servers * 1e3, "ms"),
        _row("processor time of the benchmark's own servers, each", case, others / servers * 1e3, "ms"),
    ]


def _until_all_have_moved(swarms: list[subprocess.Popen[str]], servers: int) -> float:
    """When the last of them was welcomed."""
    moved, last, limit = 0, 0.0, time.monotonic() + PATIENCE
    while moved < servers:
        assert time.monotonic() < limit, f"{moved} of {servers} servers have moved"
        time.sleep(0.2)
        for swarm in swarms:
            assert swarm.stdin is not None
            assert swarm.stdout is not None
            swarm.stdin.write("\n")
            swarm.stdin.flush()
            figures = json.loads(swarm.stdout.readline())
            moved += figures["moved"]
            last = max(last, figures["moved_at"])
    return last


def _row(measure: str, case: str, value: float, unit: str, goal: Goal | None = None) -> Row:
    return Row("gateway loss", measure, case, value, unit, goal, "emulated", COMMAND)


def _await_health(subject: Subject) -> None:
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{subject.port}/healthz").close()
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > limit:
                raise
            time.sleep(0.2)
        else:
            return


def main() -> None:
    show(rows(*map(int, sys.argv[1:])))


if __name__ == "__main__":
    main()
