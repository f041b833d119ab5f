"""Row 10: where all weights fit one GPU, elastic roles must not lose to monolithic replicas."""

from __future__ import annotations

from statistics import mean

from benchmarks.scheduling import workloads
from benchmarks.scheduling.backlog import counted
from benchmarks.scheduling.contenders import CONTENDERS, with_settings
from benchmarks.scheduling.results import Goal, Report, Row
from benchmarks.scheduling.statistics import ratio
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.sim.metrics import Result, quantile
from scheduler.sim.setup import Scenario

NAMES = ("ours", "monolithic, shortest first")
MIXES = ("standard",)
REQUESTS = 1050


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(compared, [(mix, name) for mix in MIXES for name in NAMES])


def compared(mix: str, contender: str, seed: int, quick: bool) -> Figures:
    """Throughput under a backlog, p50 at 70 % load. Batching and preemption off: the replicas have neither."""
    requests = 250 if quick else REQUESTS
    chosen = with_settings(CONTENDERS[contender], max_batch=1, preemption=False)
    backlog = workloads.backlogged(mix, "fits", requests)
    light = workloads.stationary(mix, "fits", 0.7, requests)
    rate = _work_rate(backlog, chosen.run(backlog, seed))
    took = [r.latency for r in chosen.run(light, seed).requests]
    return {"rate": rate, "p50": quantile(took, 0.5)}


def _work_rate(scenario: Scenario, result: Result) -> float:
    """Mean requests finished per second: each counts by its work, since the order decides which are finished."""
    since, until = counted(scenario)
    done = sum(r.alone for r in result.requests if since <= r.ended < until)
    return done / mean(r.alone for r in result.requests) / (until - since)


def report(results: Results) -> Report:
    found = Report("Where everything fits: against monolithic replicas")
    for mix in MIXES:
        ours, theirs = (results.of(compared, mix, name) for name in NAMES)
        rate, p50 = (ratio([r[f] for r in ours], [r[f] for r in theirs]) for f in ("rate", "p50"))
        found.rows.append(Row(10, "throughput / monolithic replicas'", mix, rate, "", Goal(">=", 0.99)))
        found.rows.append(Row(10, "p50 latency / monolithic replicas'", f"{mix} at 70 %", p50, "", Goal("<=", 1.02)))
    found.text = [
        "Eight H100s. The replicas take whole requests from one central queue, in the same order; a request "
        "stays on its server. Our servers are free to hold fewer roles, and do not."
    ]
    return found
