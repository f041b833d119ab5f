"""Rows 5, 14: orders on servers that hold every role, under bursts; what the largest jobs pay."""

from __future__ import annotations

from benchmarks.scheduling import workloads
from benchmarks.scheduling.contenders import CONTENDERS
from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate, ratio
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.sim.metrics import mean, quantile

LOADS = ("70 %", "90 %")
NAMES = ("ours", "ours, first come", "round robin", "join shortest queue")
BURSTS = 3.0
REQUESTS = 1000


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(latencies, [(load, name) for load in LOADS for name in NAMES])


def latencies(load: str, contender: str, seed: int, quick: bool) -> Figures:
    requests = 250 if quick else REQUESTS
    scenario = workloads.stationary("standard", "fits", int(load.split()[0]) / 100, requests, BURSTS)
    result = CONTENDERS[contender].run(scenario, seed)
    took = [r.latency for r in result.requests]
    tails = result.slowdown_p99()
    largest = max(scenario.workload.phases[0].mix, key=lambda part: part[1].height * part[1].steps)[1]
    name = f"{largest.width}x{largest.height}/{largest.steps}"
    return {
        "mean": mean(took),
        "p99": quantile(took, 0.99),
        "largest": tails[name],
        "worst wait": max(r.latency - r.alone for r in result.requests if r.kind == name),
        **{f"slowdown {kind}": tail for kind, tail in tails.items()},
    }


def report(results: Results) -> Report:
    found = Report("Orders")
    body = []
    for load in LOADS:
        first = _values(results, load, "ours, first come")
        ours = _values(results, load, "ours")
        for name in NAMES[1:]:
            theirs = _values(results, load, name)
            is_goal = load == "90 %" and name == "ours, first come"
            goal = Goal("<=", 0.6) if is_goal else Goal("<", 1.0)
            case = f"{load} load, against {name.removeprefix('ours, ')}"
            found.rows.append(Row(5, "mean latency / baseline's", case, ratio(ours["mean"], theirs["mean"]), "", goal))
        tail = ratio(ours["largest"], first["largest"])
        measure = "p99 slowdown of the largest class / first-come's"
        found.rows.append(Row(5, measure, f"{load} load", tail, "", Goal("<=", 1.5)))
        body += [_line(results, load, name) for name in NAMES]
    kinds = sorted(k for k in results.of(latencies, LOADS[0], "ours")[0] if k.startswith("slowdown"))
    head = ["load", "order", "mean, s", "p99, s", *(f"p99 {kind}" for kind in kinds)]
    found.text = [
        "Eight H100s that each hold every role, the standard mix in bursts (Gamma, coefficient of variation "
        "3). First come is one queue for all; round robin and join-shortest-queue bind whole requests to "
        "servers on arrival. Slowdown: latency over the time of the idle request, p99 of each size class.",
        table(head, body),
    ]
    return found


def _values(results: Results, load: str, name: str) -> dict[str, list[float]]:
    return {f: results.values(latencies, load, name, figure=f) for f in ("mean", "largest")}


def _line(results: Results, load: str, name: str) -> list[str]:
    runs = results.of(latencies, load, name)
    kinds = sorted(k for k in runs[0] if k.startswith("slowdown"))
    return [load, name, *(str(estimate([run[f] for run in runs])) for f in ("mean", "p99", *kinds))]
