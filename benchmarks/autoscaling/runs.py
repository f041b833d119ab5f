"""One run in the full simulator, and which of a grid's settings is compared."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.autoscaling import foresight
from benchmarks.autoscaling.contenders import planned, scaling
from benchmarks.autoscaling.quick import START, Figures
from benchmarks.autoscaling.workloads import alone, scenario
from benchmarks.scheduling.tasks import Figures as Told
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.sim.engine import simulate
from scheduler.sim.launcher import Scaling
from scheduler.sim.metrics import Result
from scheduler.sim.setup import Scenario

MET = 0.99
FORESIGHT, PREDICTION = "foresight", "prediction"
MOST_MENDED = 20
"""Times that a plan is tried and mended until it meets the deadlines in the full simulator."""


def one(contender: str, setting: str, load: str, seed: int, quick_run: bool) -> Told:  # noqa: ARG001 # a task's
    """Share of deadlines met, server-seconds and starts."""
    given = scenario(load, seed)
    if contender != FORESIGHT:
        return _told(_result(given, seed, scaling(contender, setting)), given)
    (pool,) = given.pools  # a plan knows what each start takes: all take the mean
    given = replace(given, pools=(replace(pool, cold_start=(START, START)),))
    plan = foresight.plan(load, seed)
    for _ in range(MOST_MENDED):
        result = _result(given, seed, planned(plan))
        if result.met_deadlines() >= MET:
            break
        plan = foresight.mended(plan, [each.arrived for each in result.requests if not each.met_deadline])
    return _told(result, given)


def _result(given: Scenario, seed: int, decider: Scaling) -> Result:
    # Every server holds every role, so that there are none to move; the others take most of the time of a run.
    settings = ElasticSettings(elastic_roles=False, preemption=False, migration=False)
    policies = elastic_policies(settings, [given.setups[0].profile])
    return simulate(given, policies, seed, scaling=decider)


def _told(result: Result, given: Scenario) -> Told:
    latencies = sorted(result.latencies())
    return {
        "met": result.met_deadlines(),
        "seconds": result.pool_seconds(),
        "work": sum(alone(arrival.kind) for arrival in given.workload.trace),
        "starts": float(len(result.starts)),
        "mean": sum(latencies) / len(latencies),
    }


def best(found: dict[str, Figures]) -> str:
    """The cheapest of those that meet the deadlines; where none does, whichever meets most."""
    good = {setting: figures for setting, figures in found.items() if figures.met >= MET}
    if good:
        return min(good, key=lambda setting: good[setting].cost)
    return max(found, key=lambda setting: found[setting].met)
