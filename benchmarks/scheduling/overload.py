"""Rows 9, 12: twice as much as can be served, and a tenant who floods."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from benchmarks.scheduling import workloads
from benchmarks.scheduling.results import Goal, Report, Row
from benchmarks.scheduling.statistics import estimate
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from benchmarks.scheduling.twin import run
from scheduler.elastic.build import elastic_policies
from scheduler.sim.bound import with_best_roles
from scheduler.sim.metrics import End, Result
from scheduler.sim.setup import Scenario
from scheduler.sim.workload import Kind, Phase, Workload

SECONDS = 400.0
WARM_UP = 60.0
DEADLINES = {"fits": 60.0, "role sets": 600.0}
SHARES = {"fair share": 0.6, "less than its share": 0.3}
"""What the calm tenant asks for, of what can be served; the other always floods with 1.5 times of it."""


def tasks(effort: Effort) -> list[Task]:
    flood = effort.tasks(flooded, [(case,) for case in SHARES])
    return [*effort.tasks(admitted, [(fleet,) for fleet in DEADLINES]), *flood]


def admitted(fleet: str, seed: int, quick: bool) -> Figures:
    """The standard mix at twice the rate that can be served."""
    deadline = DEADLINES[fleet]
    mix = tuple((weight, replace(kind, deadline=deadline)) for weight, kind in workloads.MIXES["standard"])
    result = _run(fleet, Phase(_seconds(deadline, quick), mix), 2.0, seed)
    errors = result.wait_errors()
    return {
        "met": 1 - result.deadline_misses(),
        "error": median(errors),
        "absolute error": median(map(abs, errors)),
        "admitted": 1 - result.count(End.REJECTED) / len(result.requests),
    }


def flooded(case: str, seed: int, quick: bool) -> Figures:
    """The calm tenant's device-seconds, relative to its fair share of them."""
    calm = Kind("calm", tenant="calm", deadline=60)
    flood = replace(calm, name="flood", tenant="flood")
    asked = SHARES[case]
    phase = Phase(_seconds(60.0, quick), ((asked, calm), (1.5, flood)))
    result = _run("fits", phase, asked + 1.5, seed)
    used = _tenant_work(result)
    offered = sum(r.alone for r in result.requests if r.tenant == "calm" and _counts(r.arrived, result))
    fair = min(0.5 * sum(used.values()), offered)
    return {"share": used["calm"] / fair, "of all": used["calm"] / sum(used.values())}


def _tenant_work(result: Result) -> dict[str, float]:
    used = {"calm": 0.0, "flood": 0.0}
    for request in result.requests:
        if request.end is End.FINISHED and _counts(request.arrived, result):
            used[request.tenant] += request.alone
    return used


def _counts(arrived: float, result: Result) -> bool:
    return arrived >= WARM_UP and arrived < result.until


def _seconds(deadline: float, quick: bool) -> float:
    return SECONDS * deadline / 60.0 / (4 if quick else 1)


def _run(fleet: str, phase: Phase, load: float, seed: int) -> Result:
    servers = workloads.FLEETS[fleet]()
    phase = workloads.at(load, servers, phase)
    scenario = Scenario("overload", with_best_roles(servers, phase), Workload((phase,)))
    return run(scenario, elastic_policies(profiles=[server.profile for server in servers]), seed)


def report(results: Results) -> Report:
    found = Report("Overload and fairness")
    for fleet, deadline in DEADLINES.items():
        runs = results.of(admitted, fleet)
        case = f"{fleet}: standard mix at 200 %, deadlines of {deadline:g} s"
        met, error, absolute = (estimate([r[f] for r in runs]) for f in ("met", "error", "absolute error"))
        found.rows.append(Row(9, "admitted requests that meet their deadline", case, met, "", Goal(">=", 0.98)))
        measure = "median error of x-predicted-wait-ms"
        found.rows.append(Row(9, f"{measure}, from above", case, error, "", Goal("<=", 0.15)))
        found.rows.append(Row(9, f"{measure}, from below", case, error, "", Goal(">=", -0.15)))
        share = estimate([r["admitted"] for r in runs])
        found.text.append(
            f"{case}: {share} of the requests are admitted; median absolute error of the prediction {absolute}."
        )
    for case in SHARES:
        share = estimate([r["share"] for r in results.of(flooded, case)])
        measure = "device-seconds of the calm tenant / its fair share"
        found.rows.append(
            Row(12, measure, f"asks for {SHARES[case]:.0%}, the other for 150 %", share, "", Goal(">=", 0.95))
        )
    return found
