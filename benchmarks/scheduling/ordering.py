"""Rows 5, 14: orders on servers that hold every role, under bursts; what the largest jobs pay."""

from __future__ import annotations

from benchmarks.scheduling import workloads
from benchmarks.scheduling.contenders import CONTENDERS
from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate, ratio
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.elastic.settings import ElasticSettings
from scheduler.sim.metrics import End, Result, mean, quantile

LOADS = ("70 %", "90 %")
NAMES = ("ours", "ours, first come", "round robin", "join shortest queue", "pure shortest first")
BURSTS = 3.0
REQUESTS = {"70 %": 1000, "90 %": 3000}
"""Near saturation it takes long until queues are as long as they will be, and with bursts longer."""


PATIENCE = ElasticSettings().patience
LARGEST = "1536x1536/35"


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(compared, [(load,) for load in LOADS])


def compared(load: str, seed: int, quick: bool) -> Figures:
    """All orders on the same arrivals: "order: figure" of each, and how ours compares with the order of arrival."""
    requests = 250 if quick else REQUESTS[load]
    scenario = workloads.stationary("standard", "fits", int(load.split()[0]) / 100, requests, BURSTS)
    runs = {name: CONTENDERS[name].run(scenario, seed) for name in NAMES}
    figures = {f"{name}: {figure}": value for name in NAMES for figure, value in _latencies(runs[name]).items()}
    ours = runs["ours"]
    figures["longer"] = _overtaken(ours, runs["ours, first come"])
    figures["unfinished"] = float(sum(r.end is not End.FINISHED for r in ours.requests))
    return figures


def _latencies(result: Result) -> Figures:
    took = [r.latency for r in result.requests]
    tails = result.slowdown_p99()
    return {
        "mean": mean(took),
        "p99": quantile(took, 0.99),
        "largest": tails[LARGEST],
        **{f"slowdown {kind}": tail for kind, tail in tails.items()},
    }


def _overtaken(ours: Result, first: Result) -> float:
    """How much longer than in order of arrival the largest requests wait at most, in their own durations."""
    before = {r.id: r.latency for r in first.requests}
    return max((r.latency - before[r.id]) / r.alone for r in ours.requests if r.kind == LARGEST)


def kinds(results: Results) -> list[str]:
    """Classes of size, smallest first."""
    mark = "ours: slowdown "
    found = [name.removeprefix(mark) for name in results.of(compared, LOADS[0])[0] if name.startswith(mark)]
    return sorted(found, key=lambda kind: int(kind.split("x")[0]))


def report(results: Results) -> Report:
    found = Report("Orders")
    body = []
    for load in LOADS:
        first = _values(results, load, "ours, first come")
        ours = _values(results, load, "ours")
        for name in NAMES[1:4]:
            theirs = _values(results, load, name)
            is_goal = load == "90 %" and name == "ours, first come"
            goal = Goal("<=", 0.6) if is_goal else Goal("<", 1.0)
            case = f"{load} load, against {name.removeprefix('ours, ')}"
            found.rows.append(Row(5, "mean latency / baseline's", case, ratio(ours["mean"], theirs["mean"]), "", goal))
        tail = ratio(ours["largest"], first["largest"])
        measure = "p99 slowdown of the largest class / first-come's"
        found.rows.append(Row(5, measure, f"{load} load", tail, "", Goal("<=", 1.5)))
        longer, unfinished = (estimate(results.values(compared, load, figure=f)) for f in ("longer", "unfinished"))
        measure = "longest wait of a largest job beyond first-come's, in its own durations"
        found.rows.append(Row(14, measure, f"{load} load", longer, "", Goal("<=", PATIENCE + 1)))
        found.rows.append(Row(14, "requests that never end", f"{load} load", unfinished, "", Goal("==", 0.0)))
        body += [_line(results, load, name) for name in NAMES]
    head = ["load", "order", "mean, s", "p99, s", *(f"p99 slowdown {kind}" for kind in kinds(results))]
    found.text = [
        "Eight H100s that each hold every role, the standard mix in bursts (Gamma, coefficient of variation "
        "3). First come is one queue for all; round robin and join-shortest-queue bind whole requests to "
        "servers on arrival. Slowdown: latency over the time of the idle request, p99 of each size class.",
        table(head, body),
    ]
    return found


def _values(results: Results, load: str, name: str) -> dict[str, list[float]]:
    return {f: results.values(compared, load, figure=f"{name}: {f}") for f in ("mean", "largest")}


def _line(results: Results, load: str, name: str) -> list[str]:
    figures = ("mean", "p99", *(f"slowdown {kind}" for kind in kinds(results)))
    return [load, name, *(str(estimate(results.values(compared, load, figure=f"{name}: {f}"))) for f in figures)]
