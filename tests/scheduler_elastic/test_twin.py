"""The policies in the simulator: a few short runs in which what they are for must show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings, Ordering
from scheduler.sim import suite
from scheduler.sim.bound import fluid_rate
from scheduler.sim.engine import simulate
from scheduler.sim.metrics import End, Result, mean, quantile
from scheduler.sim.setup import Scenario


def run(scenario: Scenario, seed: int = 1, **settings: object) -> Result:
    known = [server.profile for server in scenario.servers]
    return simulate(scenario, elastic_policies(ElasticSettings(elastic_roles=False, **settings), known), seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("base", [suite.step_shift(2400), suite.edits()], ids=["step shift", "edits"])
def test_servers_with_several_roles_reach_the_fluid_bound(base: Scenario) -> None:
    """Row 1."""
    scenario = suite.backlog(base, 700, requests=200, phase=len(base.workload.phases) - 1)
    result = run(scenario, max_batch=1, ordering=Ordering.FIRST_COME)
    assert result.throughput(200, 700) >= 0.97 * fluid_rate(scenario.servers, scenario.workload.phases[0])


def test_shortest_first_halves_the_wait_and_spares_the_largest() -> None:
    """Row 5, with the margins of two short runs."""
    scenario = suite.bursts(250, 0.9)
    ours, theirs = ([run(scenario, seed, **how) for seed in (1, 2)] for how in ({}, {"ordering": Ordering.FIRST_COME}))
    assert mean(mean(r.latencies()) for r in ours) < 0.75 * mean(mean(r.latencies()) for r in theirs)
    largest = next(name for name in ours[0].slowdown_p99() if "1536" in name)
    tails = [mean(r.slowdown_p99()[largest] for r in some) for some in (ours, theirs)]
    assert tails[0] < 2 * tails[1]


def test_overload_admits_what_can_be_done_in_time_and_is_fair() -> None:
    """Rows 9 and 12."""
    result = run(suite.overload(200))
    admitted = [r for r in result.requests if r.end is not End.REJECTED]
    assert mean(r.met_deadline for r in admitted) >= 0.95
    errors = [r.predicted / r.latency - 1 for r in admitted if r.end is End.FINISHED and r.arrived > 60]
    assert abs(quantile(errors, 0.5)) <= 0.15
    calm, flood = (result.tenant_seconds[tenant] for tenant in ("calm", "flood"))
    assert calm >= 0.9 * min(flood, sum(r.alone for r in result.requests if r.tenant == "calm"))


def test_a_run_is_repeated_to_the_last_bit() -> None:
    scenario = replace(suite.bursts(60, 0.9), name="again")
    assert run(scenario, 3).requests == run(scenario, 3).requests


def test_observers_may_be_told_in_any_order() -> None:
    """As ``build`` says: none of them reads what another has written down of the same event."""
    scenario = replace(suite.overload(60), name="any order")
    known = [server.profile for server in scenario.servers]
    policies = [elastic_policies(ElasticSettings(elastic_roles=False), known) for _ in range(2)]
    policies[1].observers = tuple(reversed(tuple(policies[1].observers)))
    assert len({str(simulate(scenario, chosen, 3).requests) for chosen in policies}) == 1
