"""Row 11: processor time of one decision, and of one role plan, in a fleet of a thousand servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import thread_time

from benchmarks.scheduling.decision_time import measure
from benchmarks.scheduling.results import Goal, Report, Row
from benchmarks.scheduling.statistics import estimate
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from gateway.shell.garbage import spare_pauses
from scheduler.roles.solver import plan
from scheduler.sim import suite
from scheduler.sim.bound import problem, with_best_roles
from scheduler.sim.metrics import quantile
from scheduler.sim.setup import ServerSetup
from scheduler.sim.workload import Phase

SERVERS, REQUESTS = 1000, 10_000
PLANS = 8


def tasks(effort: Effort) -> list[Task]:
    """Times are few and long: three runs say as much as twenty."""
    return Effort(min(3, effort.seeds), quick=effort.quick).tasks(decide, [()])


def decide(seed: int, quick: bool) -> Figures:  # noqa: ARG001 # the time is what varies
    scale = 10 if quick else 1
    spare_pauses()  # as in the gateway: the longest event has a garbage collection in it
    found = measure("elastic", SERVERS // scale, REQUESTS // scale, 30_000 // scale)
    every = [each for some in found.values() for each in some]
    seconds = [_plan_seconds(SERVERS // scale, number) for number in range(PLANS)]
    return {
        "p50 µs": quantile(every, 0.5),
        "p99 µs": quantile(every, 0.99),
        "most µs": max(every),
        "plan ms": 1000 * quantile(seconds, 0.5),
        "slowest plan ms": 1000 * max(seconds),
    }


def _plan_seconds(servers: int, number: int) -> float:
    """From roles that were best for one mix to those for another."""
    fleet = _fleet(servers)
    before, after = Phase(1.0, suite.STANDARD), Phase(1.0, suite.STANDARD[number % 4 : number % 4 + 1])
    posed = problem(with_best_roles(fleet, before), after)
    demand = {role: d * (1 + 0.1 * number) ** (i - 1) for i, (role, d) in enumerate(posed.demand.items())}
    posed = replace(posed, demand=demand)
    began = thread_time()
    plan(posed)
    return thread_time() - began


def _fleet(servers: int) -> Sequence[ServerSetup]:
    """Two classes of GPU, on which not every role fits at once."""
    fast = suite.bundled_profile("qwen-image-4090-offload")
    half = servers // 2
    return [*suite.fleet(fast, half, "a"), *suite.fleet(suite.scaled(fast, 2.0, "GPU B"), servers - half, "b")]


def report(results: Results) -> Report:
    found = Report("Decision time")
    runs = results.of(decide)
    case = f"{SERVERS:,} servers, {REQUESTS:,} queued requests"
    p99, slowest = (estimate([run[f] / u for run in runs]) for f, u in (("p99 µs", 1000), ("slowest plan ms", 1)))
    found.rows = [
        Row(11, "processor time of one event, p99", case, p99, "ms", Goal("<", 1.0)),
        Row(11, "processor time of a role plan, slowest", f"{SERVERS:,} servers", slowest, "ms", Goal("<", 50.0)),
    ]
    rest = ", ".join(f"{name} {estimate([run[name] for run in runs])}" for name in ("p50 µs", "most µs", "plan ms"))
    found.text = [
        f"Processor time of the thread, pure Python and HiGHS, on one core. Also: {rest}. The longest event has a "
        "garbage collection in it, which is set up as in the gateway."
    ]
    return found
