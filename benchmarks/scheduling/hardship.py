"""Workloads 5, 7, 8, 9, for which the goal table has no row: nothing is lost, and what hardship costs."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.scheduling.contenders import CONTENDERS
from benchmarks.scheduling.results import Report, table
from benchmarks.scheduling.statistics import estimate
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from benchmarks.scheduling.twin import patient
from scheduler.cost.profile import Profile
from scheduler.sim import suite
from scheduler.sim.metrics import End, mean, quantile
from scheduler.sim.setup import Scenario
from wire.types import Role

CASES = (
    "1 stationary",
    "5 diurnal",
    "7 heterogeneous",
    "8 faults",
    "8 the same without faults",
    "9 profile 30 % wrong",
    "9 the same, profile right",
)
SEEDS = 10
WRONG = {Role.ENCODER: 1.3, Role.DIT: 0.7, Role.DECODER: 1.3}


def tasks(effort: Effort) -> list[Task]:
    return Effort(min(SEEDS, effort.seeds), quick=effort.quick).tasks(suffer, [(case,) for case in CASES])


def suffer(case: str, seed: int, quick: bool) -> Figures:
    scenario = patient(_scenario(case, 0.25 if quick else 1.0))
    believed = tuple(_wrong(server.profile) for server in scenario.servers[:1]) if "wrong" in case else None
    result = CONTENDERS["ours"].run(scenario, seed, believed)
    took = [r.latency for r in result.finished()]
    unclear = result.count(End.OPEN) + result.count(End.FAILED)
    return {
        "requests": float(len(result.requests)),
        "lost": float(unclear),
        "mean": mean(took),
        "p99": quantile(took, 0.99),
    }


def _scenario(case: str, scale: float) -> Scenario:
    match case.split(maxsplit=1):
        case ["1", _]:
            return suite.stationary(600 * scale)
        case ["5", _]:
            return suite.diurnal(1200 * scale)
        case ["7", _]:
            return suite.heterogeneous(1500 * scale)
        case ["8", "faults"]:
            return suite.faults(600 * scale)
        case ["8", _]:
            return replace(suite.faults(600 * scale), faults=())
        case _:
            return suite.unseen_resolution(600 * scale)


def _wrong(profile: Profile) -> Profile:
    roles = {
        role: replace(part, coefficients=tuple(WRONG[role] * c for c in part.coefficients))
        for role, part in profile.roles.items()
    }
    return replace(profile, roles=roles)


def report(results: Results) -> Report:
    found = Report("Other workloads")
    body = []
    for case in CASES:
        runs = results.of(suffer, case)
        body.append([case, *(str(estimate([run[f] for run in runs])) for f in ("requests", "lost", "mean", "p99"))])
    found.text = [
        "Ours alone, on FLUX.1-dev and H100s (7: three classes of GPU). *Lost* counts requests without a "
        "picture, whatever died: one server slows down threefold, three are killed, one freezes.",
        table(["workload", "requests", "lost", "mean latency, s", "p99 latency, s"], body),
    ]
    return found
