"""Rows 3, 4, 6: role policies on workloads whose mix changes, all under one order; and the clairvoyant oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

from benchmarks.scheduling import workloads
from benchmarks.scheduling.contenders import CONTENDERS, LEADS, ORACLES, ORDERS
from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate, ratio
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.roles.bound import capacity
from scheduler.roles.problem import RoleSet
from scheduler.roles.solver import best_integer
from scheduler.sim.bound import problem
from scheduler.sim.metrics import Result, mean, quantile
from scheduler.sim.setup import Scenario
from scheduler.sim.workload import Phase

ROLE_BASELINES = ("reactive", "predict only", "feedback only", "static, average")
OTHERS = ("static, first phase", "monolithic")
SAME_ORDER = tuple(name for name in ORACLES if "shortest first" in name)
FEW = 5
"""Seeds of those that are far behind."""
WITHIN = 0.95
LEAST_SECONDS, ARRIVALS = 3.0, 20


def tasks(effort: Effort) -> list[Task]:
    names = ("ours", *ROLE_BASELINES, "lower bound", *ORACLES)
    few = Effort(min(FEW, effort.seeds), quick=effort.quick)
    most = effort.tasks(latencies, [(workload, name) for workload in workloads.SHIFTS for name in names])
    return most + few.tasks(latencies, [(workload, name) for workload in workloads.SHIFTS for name in OTHERS])


def latencies(workload: str, contender: str, seed: int, quick: bool) -> Figures:
    scenario = workloads.shifting(workload, quick=quick)
    result = CONTENDERS[contender].run(scenario, seed)
    first_shift = scenario.workload.phases[0].seconds
    took = [r.latency for r in result.requests if r.arrived >= first_shift]
    figures = {"mean": mean(took), "p99": quantile(took, 0.99), "moves": float(len(result.moves))}
    if contender == "ours":
        shifts = scenario.workload.starts()[1:]
        figures["late"] = max(_late(scenario, result, began, phase) for began, phase in shifts)
        figures["late, as arrived"] = max(
            _late(scenario, result, began, _as_arrived(result, began, phase)) for began, phase in shifts
        )
    return figures


def _as_arrived(result: Result, began: float, phase: Phase) -> Phase:
    """With the mix that chance made of it."""
    return workloads.counted(phase, (r.kind for r in result.requests if began <= r.arrived < began + phase.seconds))


def _late(scenario: Scenario, result: Result, began: float, phase: Phase) -> float:
    """Seconds beyond what is allowed until roles serve the new mix within 5 % of the best; below 0: in time."""
    enough = WITHIN * best_integer(problem(scenario.servers, phase)).capacity
    end = began + phase.seconds
    ready = next(
        (max(at, began) for at, held in _roles(result, began, end) if _capacity(scenario, held, phase) >= enough), end
    )
    return ready - began - max(LEAST_SECONDS, ARRIVALS / phase.rate) - _slowest_switch(result, began, ready)


def _roles(result: Result, since: float, until: float) -> Iterator[tuple[float, dict[str, RoleSet]]]:
    """What every server holds: at ``since``, and after each change up to ``until``."""
    held: dict[str, RoleSet] = {}
    changes = [change for change in result.roles if change.at < until]
    for change, following in zip_longest(changes, changes[1:]):
        held[change.server] = change.roles
        if following is None or following.at > since:
            yield change.at, held


def _capacity(scenario: Scenario, held: dict[str, RoleSet], phase: Phase) -> float:
    servers = [replace(s, roles=held.get(s.name, s.roles)) for s in scenario.servers]
    return capacity(problem(servers, phase))


def _slowest_switch(result: Result, since: float, until: float) -> float:
    """Drain and load of the slowest server among those that were told to change."""
    slowest = 0.0
    for at, server, _ in result.moves:
        if since <= at < until:
            done = min((c.at for c in result.roles if c.server == server and c.at > at and c.roles), default=until)
            slowest = max(slowest, done - at)
    return slowest


def report(results: Results) -> Report:
    found = Report("Role policies on shifting workloads")
    body, room, lateness = [], [], []
    for workload in workloads.SHIFTS:
        ours = _values(results, workload, "ours")
        best = _oracle(results, workload)
        for figure, bound in (("mean", 1.05), ("p99", 1.10)):
            against = ratio(ours[figure], best[figure])
            found.rows.append(Row(3, f"{figure} latency / oracle", workload, against, "", Goal("<=", bound)))
            for name in ROLE_BASELINES:
                theirs = ratio(ours[figure], _values(results, workload, name)[figure])
                found.rows.append(Row(4, f"{figure} latency / {name}", workload, theirs, "", Goal("<", 1.0)))
        late, as_arrived = (
            estimate([run[f] for run in results.of(latencies, workload, "ours")]) for f in ("late", "late, as arrived")
        )
        goal = Goal("<=", 0.0)
        found.rows.append(Row(6, "time to the new optimum beyond what is allowed", workload, late, "s", goal))
        lateness.append([workload, str(late), str(as_arrived)])
        room += [
            [workload, name, *(str(ratio(best[f], _values(results, workload, name)[f])) for f in ("mean", "p99"))]
            for name in ROLE_BASELINES
        ]
        names = ("ours", *ROLE_BASELINES, *OTHERS, "lower bound")
        columns = {name: _values(results, workload, name) for name in names}
        columns |= {"oracle, same order": _oracle(results, workload, SAME_ORDER), "oracle, best of the grid": best}
        body += [
            [workload, name, *(str(estimate(values[f])) for f in ("mean", "p99"))] for name, values in columns.items()
        ]
    found.text = [
        _explanation(),
        table(["workload", "policy", "mean latency, s", "p99 latency, s"], body),
        "What there is to gain on each baseline: the oracle's latency over its. Near 1 there is little to win.",
        table(["workload", "baseline", "mean: oracle / baseline", "p99: oracle / baseline"], room),
        "Time to the new optimum beyond what is allowed, in seconds: for the mix of the phase as defined (row 6), and "
        "for the mix that chance made of it, which is all that a scheduler can see.",
        table(["workload", "mix as defined", "mix as arrived"], lateness),
    ]
    return found


def _explanation() -> str:
    orders, leads = " and ".join(ORDERS), ", ".join(LEADS)
    return (
        "Eight RTX 4090s of which one role each fits, phases of 240 s at 80 % of what the best roles of the phase "
        "can serve; requests count from the first shift on. All policies share order, placement and preemption; "
        "*monolithic* is the offloading deployment at the same number of GPUs. Oracle: per seed and figure the best of "
        f"{orders} × roles ordered {leads}, true costs known. *Lower bound*: every server can do everything at once, "
        "switches cost nothing."
    )


def _values(results: Results, workload: str, name: str) -> dict[str, list[float]]:
    return {figure: results.values(latencies, workload, name, figure=figure) for figure in ("mean", "p99")}


def _oracle(results: Results, workload: str, names: Sequence[str] = ORACLES) -> dict[str, list[float]]:
    grid = [_values(results, workload, name) for name in names]
    return {f: [min(each) for each in zip(*(values[f] for values in grid), strict=True)] for f in ("mean", "p99")}
