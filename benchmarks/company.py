"""The highest rate at which the bundled model on one core answers in time, with jobs that compute together and without.

python -m benchmarks.company [--requests 100] [--size 256x256] [--steps 12] [--core 0] [--one-server] [--under-way 8]

A stage server for each role, or with --one-server one that holds all, with one thread each, all on one core; gateway
and client have the others. Requests without seeds leave as a Poisson stream. In time is: p99 at most three times the
latency of a request alone, and none fails. The same arrivals meet both settings. Not for a machine that others use: the
rate is halved upon by p99 alone.

With --under-way so many requests are kept under way instead, and what a picture costs in processor time is compared:
that can be measured on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.ports import free_port
from wire.types import REQUIRED

READY_SECONDS = 180.0
SLACK = 3.0
"""Times the latency of a request alone."""
HALVINGS = 5
GOAL = 1.4


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="at each rate (default: 100)")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--core", type=int, default=0, help="that the stage servers have to themselves (default: 0)")
    parser.add_argument("--one-server", action="store_true", help="that holds every role, instead of one for each")
    parser.add_argument("--under-way", type=int, help="keep so many requests under way, and compare processor time")
    args = parser.parse_args(arguments)
    roles = [",".join(REQUIRED)] if args.one_server else list(REQUIRED)
    if args.under_way:
        _compare_costs(args, roles)
    else:
        _compare_rates(args, roles)


def _compare_costs(args: argparse.Namespace, roles: Sequence[str]) -> None:
    costs = {}
    for most in (1, 8):
        with _service(most, args.core, roles) as service:
            load = _Load(service.url, args.size, args.steps)
            closed = ("--arrivals", "closed", "--concurrency", str(args.under_way), "--requests")
            load.seconds((*closed, str(2 * args.under_way)))  # what can be joined is learned
            before = service.processor_seconds()
            found = load.seconds((*closed, str(args.requests)))
            spent = [after - then for after, then in zip(service.processor_seconds(), before, strict=True)]
        made = args.requests - found["failed"]
        costs[most] = sum(spent) / made
        each = ", ".join(f"{role} {seconds / made:.3f}" for role, seconds in zip(roles, spent, strict=True))
        print(f"at most {most} together: {costs[most]:.3f} s of processor time a picture ({each})", end="")
        print(f", {found['failed']:.0f} failed", flush=True)
    print(f"{args.size}, {args.steps} steps, {args.under_way} under way: {costs[8] / costs[1]:.2f} times the time")


def _compare_rates(args: argparse.Namespace, roles: Sequence[str]) -> None:
    rates = {}
    for most in (1, 8):
        with _service(most, args.core, roles) as service:
            load = _Load(service.url, args.size, args.steps)
            alone = load.seconds(("--arrivals", "closed", "--concurrency", "1", "--requests", "8"))["p50"]
            rates[most] = _highest(load, alone, args.requests)
        print(f"at most {most} together: alone {alone:.3f} s, in time up to {rates[most]:.2f} requests/s", flush=True)
    print(f"{args.size}, {args.steps} steps: {rates[8] / rates[1]:.2f} times the rate (goal: {GOAL:g} at 256x256)")


def _highest(load: _Load, alone: float, requests: int) -> float:
    """Requests per second."""
    low, high = 0.1 / alone, 3.0 / alone
    for _ in range(HALVINGS):
        rate = (low * high) ** 0.5
        found = load.seconds(("--rate", str(rate), "--requests", str(requests)))
        in_time = not found["failed"] and found["p99"] <= SLACK * alone
        low, high = (rate, high) if in_time else (low, rate)
        print(f"  {rate:.2f} requests/s: p99 {found['p99']:.3f} s, {found['failed']:.0f} failed", flush=True)
    return low


class _Load:
    """Requests without seeds, from a process of their own."""

    def __init__(self, url: str, size: str, steps: int) -> None:
        self._options = ("--url", url, "--size", size, "--steps", str(steps), "--seeded-share", "0", "--retries", "0")

    def seconds(self, options: Sequence[str]) -> dict[str, float]:
        """Latencies by quantile, and the number that failed."""
        command = [sys.executable, "-m", "clients", "load", *self._options, *options, "--json", "-"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            summary: dict[str, Any] = json.loads(done.stdout)["summary"]
        except (ValueError, KeyError):
            raise SystemExit(f"the load generator failed: {done.stderr or done.stdout}") from None
        quantiles = summary["latency_seconds"] or {"p50": float("inf"), "p99": float("inf")}
        return {**quantiles, "failed": summary["requests"] - summary["succeeded"]}


@dataclass(frozen=True, slots=True)
class _Service:
    url: str
    stages: Sequence[subprocess.Popen[bytes]]

    def processor_seconds(self) -> list[float]:
        """Of each stage server since it began."""
        stats = [Path(f"/proc/{stage.pid}/stat").read_text().rpartition(")")[2].split() for stage in self.stages]
        return [(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK") for stat in stats]


@contextmanager
def _service(most: int, core: int, roles: Sequence[str]) -> Iterator[_Service]:
    """``most`` jobs compute together; a stage server for each of ``roles``, which may be several with commas."""
    http, control = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DISAGFUSION")}
    with tempfile.TemporaryDirectory(prefix="disagfusion-") as folder:
        gateway = [sys.executable, "-m", "gateway", "--port", str(http)]
        stage = [sys.executable, "-m", "stage_server", "--model", "tiny-shapes", "--threads", "1", "--pin"]
        stage += ["--gateway", f"tcp://127.0.0.1:{control}", "--role"]
        variables = {"CONTROL_BIND": f"tcp://127.0.0.1:{control}", "MAX_BATCH": str(most), "STATE_DIR": folder}
        given = environment | {f"DISAGFUSION_{name}": value for name, value in variables.items()}
        others = os.sched_getaffinity(0) - {core} or {core}
        with Path(folder, "log").open("wb") as log:
            processes = [_started(gateway, given, others, log)]
            processes += [_started([*stage, role], environment, {core}, log) for role in roles]
            try:
                _wait_until_ready(http, processes, Path(folder, "log"))
                yield _Service(f"http://127.0.0.1:{http}/v1", processes[1:])
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait()


def _started(
    command: Sequence[str], environment: Mapping[str, str], cores: set[int], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """On these cores only, as its parent is while it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    finally:
        os.sched_setaffinity(0, before)


def _wait_until_ready(port: int, processes: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise SystemExit(f"the service did not start:\n{log.read_text(errors='replace')}")


if __name__ == "__main__":
    main()
