"""The highest rate at which the bundled model on one core answers in time, with jobs that compute together and without.

python -m benchmarks.company [--requests 50] [--seeds 2] [--late 0.01] [--size 256x256] [--steps 12] [--core 0]
                             [--one-server] [--under-way 8]

A stage server for each role, or with --one-server one that holds all, with one thread each, all on one core; gateway
and client have the others. Requests without seeds leave as Poisson streams, one for each arrival seed. In time is: of
all streams together at most one request in a hundred (--late) takes longer than three times the latency of a request
alone, or fails. The same arrivals meet both settings. Rates are 10 % apart, and one is given up as soon as too many are
late. Not for a machine that others use.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.highest import highest
from benchmarks.on_cores import running
from benchmarks.ports import free_port
from wire.types import REQUIRED

SLACK = 3.0
"""Times the latency of a request alone."""
FIRST, GRID, STRIDE = 0.65, 1.1, 2
"""Where the search for the rate begins, in requests per latency alone; between two rates; how far it looks first."""
GOAL = 1.4


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50, help="at each rate, for each seed (default: 50)")
    parser.add_argument("--seeds", type=int, default=2, help="streams of arrivals at each rate (default: 2)")
    parser.add_argument(
        "--late", type=float, default=0.01, help="share that may be late: 0.01 is p99 (default), 0.05 p95"
    )
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
    """The same arrivals and the same limit for both settings."""
    limit, first, rates = 0.0, 0.0, {}
    for most in (1, 8):
        with _service(most, args.core, roles) as service:
            load = _Load(service.url, args.size, args.steps)
            alone = load.seconds(("--arrivals", "closed", "--concurrency", "1", "--requests", "8"))["p50"]
            limit, first = limit or SLACK * alone, first or FIRST / alone
            rates[most] = first = highest(partial(_is_in_time, load, limit, args), first, GRID, STRIDE)
        print(f"at most {most} together: alone {alone:.3f} s, in time up to {rates[most]:.2f} requests/s", flush=True)
    ratio, step = rates[8] / rates[1], GRID - 1
    print(f"{args.size}, {args.steps} steps: {ratio:.2f} times the rate, give or take {step:.0%} (goal: {GOAL:g})")


def _is_in_time(load: _Load, limit: float, args: argparse.Namespace, rate: float) -> bool:
    """All seeds together; those that are left are not run once too many are late."""
    late, may_be_late = 0, int(args.late * args.requests * args.seeds)
    for seed in range(1, args.seeds + 1):
        stream = ("--rate", str(rate), "--requests", str(args.requests), "--arrival-seed", str(seed))
        found = load.seconds((*stream, "--slo", str(limit)))
        late += round((1 - found["in time"]) * args.requests)
        print(f"  {rate:.2f} requests/s, seed {seed}: p99 {found['p99']:.3f} s, {late} late so far", flush=True)
        if late > may_be_late:
            return False
    return True


class _Load:
    """Requests without seeds, from a process of their own."""

    def __init__(self, url: str, size: str, steps: int) -> None:
        self._options = ("--url", url, "--size", size, "--steps", str(steps), "--seeded-share", "0", "--retries", "0")

    def seconds(self, options: Sequence[str]) -> dict[str, float]:
        """Latencies by quantile, the number that failed, and the share that was in time if --slo says what that is."""
        command = [sys.executable, "-m", "clients", "load", *self._options, *options, "--json", "-"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            summary: dict[str, Any] = json.loads(done.stdout)["summary"]
        except (ValueError, KeyError):
            raise SystemExit(f"the load generator failed: {done.stderr or done.stdout}") from None
        quantiles = summary["latency_seconds"] or {"p50": float("inf"), "p99": float("inf")}
        attained = summary["slo_attained"]
        return {
            **quantiles,
            "failed": summary["requests"] - summary["succeeded"],
            "in time": 1.0 if attained is None else attained,
        }


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
        processes = [(gateway, given, others), *(([*stage, role], environment, {core}) for role in roles)]
        with running(processes, http, Path(folder, "log")) as started:
            yield _Service(f"http://127.0.0.1:{http}/v1", started[1:])


if __name__ == "__main__":
    main()
