"""Every contender serves a small workload to its end, and what sets it apart shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scheduling import backlog, workloads
from benchmarks.scheduling.contenders import CONTENDERS
from benchmarks.scheduling.twin import PlanCache
from scheduler.sim.bound import problem
from scheduler.sim.metrics import End, Result, mean
from scheduler.sim.setup import ALL_ROLES, Scenario
from scheduler.sim.workload import Workload


def small(*mixes: str, fleet: str = "exclusive", seconds: float = 40.0) -> Scenario:
    whole = workloads.shifting("2 step shift", fleet, quick=True)
    phases = tuple(
        workloads.at(0.7, whole.servers, replace(whole.workload.phases[0], seconds=seconds, mix=workloads.MIXES[mix]))
        for mix in mixes
    )
    return replace(whole, workload=Workload(phases))


def latency(result: Result) -> float:
    return mean(r.latency for r in result.requests)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_serves_all(name: str) -> None:
    result = CONTENDERS[name].run(small("all 4-step", "all 1-step"), seed=1)
    assert result.requests
    assert {request.end for request in result.requests} == {End.FINISHED}


def test_oracle_orders_roles_before_the_phase_begins_if_told_to() -> None:
    scenario = small("all 4-step", "all 1-step", seconds=60.0)
    on_time = CONTENDERS["oracle, shortest first, on time"].run(scenario, seed=1)
    ahead = CONTENDERS["oracle, shortest first, one load ahead"].run(scenario, seed=1)
    assert 60 <= on_time.moves[0][0] < 65
    assert 20 <= ahead.moves[0][0] < 26


def test_reactive_moves_a_server_where_jobs_wait() -> None:
    result = CONTENDERS["reactive"].run(small("all 4-step", "all 1-step", seconds=60.0), seed=1)
    assert any(reason.startswith("decoder") for at, _, reason in result.moves if at > 60)


def test_replicas_are_bound_on_arrival() -> None:
    scenario = small("standard", fleet="fits", seconds=60.0)
    assert all(server.roles == ALL_ROLES for server in CONTENDERS["round robin"].scenario(scenario).servers)
    by_turns, by_length = (CONTENDERS[name].run(scenario, seed=1) for name in ("round robin", "join shortest queue"))
    assert latency(by_length) < latency(by_turns)


def test_lower_bound_is_below() -> None:
    scenario = small("all 4-step", "all 1-step")
    assert latency(CONTENDERS["lower bound"].run(scenario, seed=1)) <= latency(CONTENDERS["ours"].run(scenario, seed=1))


def test_plans_of_like_problems_are_shared() -> None:
    scenario = small("all 4-step")
    posed = problem(scenario.servers, scenario.workload.phases[0])
    more = replace(posed, demand={role: 3.01 * demand for role, demand in posed.demand.items()})
    plans = PlanCache()
    first, second = plans.plan(posed), plans.plan(more)
    assert first is not None
    assert second is not None
    assert first.assignment == second.assignment
    assert len(plans) == 1
    assert second.capacity == pytest.approx(first.capacity / 3.01, rel=1e-6)


def test_backlog_is_measured_against_the_mix_that_was_served() -> None:
    figures = backlog.throughput("exclusive", "all 1-step", 1, True)
    assert 0.9 < figures["of integer"] < 1.05
