"""Rows 1, 2: throughput under an infinite backlog, against the fluid bound and the best integer assignment."""

from __future__ import annotations

from benchmarks.scheduling import workloads
from benchmarks.scheduling.contenders import CONTENDERS, with_settings
from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.roles.bound import fluid_bound
from scheduler.roles.solver import best_integer
from scheduler.sim.bound import problem
from scheduler.sim.metrics import End, Result
from scheduler.sim.setup import Scenario
from scheduler.sim.workload import Phase

SETS = [
    ("role sets", mix)
    for mix in (
        "all 4-step",
        "half 1-step",
        "all 1-step",
        "512²",
        "512² to 2048² uniform",
        "2048²",
        "edits",
        "standard",
    )
] + [("paper", "clips, half 1-step")]
EXCLUSIVE = [("exclusive", mix) for mix in ("all 4-step", "half 1-step", "all 1-step", "2048²", "edits")]
REQUESTS = 1050
WARM_UP = 0.15
"""Of the time, not counted; nor is the last part, whose requests are still under way."""


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(throughput, [*SETS, *EXCLUSIVE])


def throughput(fleet: str, mix: str, seed: int, quick: bool) -> Figures:
    """Requests per second, and as shares of the bounds."""
    scenario = workloads.backlogged(mix, fleet, 250 if quick else REQUESTS)
    result = with_settings(CONTENDERS["ours"], max_batch=1).run(scenario, seed)
    posed = problem(scenario.servers, served_mix(scenario, result))
    rate = result.throughput(*counted(scenario))
    figures = {"rate": rate, "of bound": rate / fluid_bound(posed).capacity, "moves": float(len(result.moves))}
    if fleet == "exclusive":
        figures["of integer"] = rate / best_integer(posed).capacity
    return figures


def counted(scenario: Scenario) -> tuple[float, float]:
    """The time that counts."""
    return scenario.workload.seconds * WARM_UP, scenario.workload.seconds


def served_mix(scenario: Scenario, result: Result) -> Phase:
    """What was finished in the time that counts: the order decides about that, so that the mix asked for is not it."""
    phase = scenario.workload.phases[0]
    since, until = counted(scenario)
    finished = (r for r in result.requests if r.end is End.FINISHED and since <= r.ended < until)
    return workloads.counted(phase, (r.kind for r in finished))


def report(results: Results) -> Report:
    found = Report("Throughput under an infinite backlog")
    body = []
    for fleet, mix in [*SETS, *EXCLUSIVE]:
        exclusive = fleet == "exclusive"
        figure, bound = ("of integer", 0.99) if exclusive else ("of bound", 0.97)
        measure = "throughput / best integer assignment" if exclusive else "throughput / fluid bound"
        runs = results.of(throughput, fleet, mix)
        share = estimate([run[figure] for run in runs])
        found.rows.append(Row(2 if exclusive else 1, measure, f"{fleet}: {mix}", share, "", Goal(">=", bound)))
        cells = [estimate([run[name] for run in runs]) for name in ("rate", "of bound", "moves")]
        body.append([fleet, mix, *map(str, cells)])
    found.text = [
        "100 requests are always under way, about 1,050 are served; the first 15 % of the time is not counted. The "
        "bounds are those of the mix that was served in that time. Batching is off, since the bound knows none. "
        "More than the best integer assignment is reached by changing between two of them.",
        table(["fleet", "mix", "requests/s", "of the fluid bound", "role changes"], body),
    ]
    return found
