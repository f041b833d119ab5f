"""Rows 5, 14: orders on servers that hold every role, under bursts; what the largest jobs pay."""

from __future__ import annotations

from benchmarks.scheduling import workloads
from benchmarks.scheduling.contenders import CONTENDERS
from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate, ratio
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.elastic.settings import ElasticSettings
from scheduler.sim.metrics import End, mean, quantile
from scheduler.sim.setup import Scenario

LOADS = ("70 %", "90 %")
NAMES = ("ours", "ours, first come", "round robin", "join shortest queue", "pure shortest first")
BURSTS = 3.0
REQUESTS = 1000


PATIENCE = ElasticSettings().patience
LARGEST = "1536x1536/35"


def tasks(effort: Effort) -> list[Task]:
    compared = effort.tasks(latencies, [(load, name) for load in LOADS for name in NAMES])
    return compared + effort.tasks(overtaken, [(load,) for load in LOADS])


def overtaken(load: str, seed: int, quick: bool) -> Figures:
    """How much longer than in order of arrival the largest requests wait at most, in their own durations."""
    scenario = _scenario(load, quick)
    ours, first = (CONTENDERS[name].run(scenario, seed) for name in ("ours", "ours, first come"))
    before = {r.id: r.latency for r in first.requests}
    largest = [r for r in ours.requests if r.kind == LARGEST]
    longest = max((r.latency - before[r.id]) / r.alone for r in largest)
    return {"longer": longest, "unfinished": float(sum(r.end is not End.FINISHED for r in ours.requests))}


def _scenario(load: str, quick: bool) -> Scenario:
    return workloads.stationary("standard", "fits", int(load.split()[0]) / 100, 250 if quick else REQUESTS, BURSTS)


def latencies(load: str, contender: str, seed: int, quick: bool) -> Figures:
    scenario = _scenario(load, quick)
    result = CONTENDERS[contender].run(scenario, seed)
    took = [r.latency for r in result.requests]
    tails = result.slowdown_p99()
    return {
        "mean": mean(took),
        "p99": quantile(took, 0.99),
        "largest": tails[LARGEST],
        **{f"slowdown {kind}": tail for kind, tail in tails.items()},
    }


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
        runs = results.of(overtaken, load)
        longer, unfinished = (estimate([run[f] for run in runs]) for f in ("longer", "unfinished"))
        measure = "longest wait of a largest job beyond first-come's, in its own durations"
        found.rows.append(Row(14, measure, f"{load} load", longer, "", Goal("<=", PATIENCE + 1)))
        found.rows.append(Row(14, "requests that never end", f"{load} load", unfinished, "", Goal("==", 0.0)))
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
