"""Row 7: roles hold still where nothing asks for a change."""

from __future__ import annotations

from benchmarks.scheduling import workloads
from benchmarks.scheduling.contenders import CONTENDERS
from benchmarks.scheduling.results import Goal, Report, Row
from benchmarks.scheduling.statistics import estimate
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task

LIGHT_HOURS = 1.0
CASES = {
    ("light", "exclusive", "all 4-step", "50 %"): Goal("==", 0.0),
    ("light", "paper", "clips, half 1-step", "30 %"): Goal("==", 0.0),
    ("steady", "exclusive", "half 1-step", "80 %"): Goal("<=", 1.0),
    ("steady", "role sets", "standard", "80 %"): Goal("<=", 1.0),
}
HALF_HOUR = 1800.0


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(moves, CASES)


def moves(kind: str, fleet: str, mix: str, load: str, seed: int, quick: bool) -> Figures:
    """Role changes: in all where the load is light, per half hour where it is steady."""
    fraction = int(load.split()[0]) / 100
    hours = LIGHT_HOURS if kind == "light" else 0.5
    unit = workloads.stationary(mix, fleet, fraction, 1)
    requests = int(hours * 3600 * unit.workload.phases[0].rate / (8 if quick else 1))
    scenario = workloads.stationary(mix, fleet, fraction, requests)
    result = CONTENDERS["ours"].run(scenario, seed)
    count = float(len(result.moves))
    return {"moves": count if kind == "light" else count * HALF_HOUR / scenario.workload.seconds}


def report(results: Results) -> Report:
    found = Report("Roles hold still")
    for key, goal in CASES.items():
        kind, fleet, mix, load = key
        changes = estimate([run["moves"] for run in results.of(moves, *key)])
        light = kind == "light"
        measure = f"role changes in {LIGHT_HOURS:g} h of light load" if light else "needless role changes per 30 min"
        found.rows.append(Row(7, measure, f"{fleet}: {mix} at {load}", changes, "", goal))
    found.text = [
        "Poisson arrivals of one mix; servers begin with the best roles for it, so that every change is needless."
    ]
    return found
