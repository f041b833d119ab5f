"""Runs of the simulator as the experiments need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, log

from scheduler import events as ev
from scheduler.core import Scheduler
from scheduler.cost.model import CostModel
from scheduler.policy import Policies
from scheduler.roles.problem import Infeasible, Problem, Server, ServerClass
from scheduler.roles.solver import Plan, plan
from scheduler.sim.engine import Simulation
from scheduler.sim.metrics import Recorder, Result
from scheduler.sim.setup import Scenario
from scheduler.sim.workload import Phase, Workload
from wire.types import ServerId

DEMAND_GRID = 0.025
"""Plans are shared between problems whose demands differ by less, relative to the largest, …"""
SPEED_GRID = 0.05
"""… and whose speeds differ by less than this share."""

FOR_EVER = 1e7
"""A deadline that is never reached."""


class Twin(Simulation):
    """A simulation whose role plans come from a cache: it asks for thousands, nearly all of them alike."""

    def _solved(self, problem: Problem) -> None:
        self.post(ev.PlanReady(PLANS.plan(problem)))


def run(
    scenario: Scenario, policies: Policies, seed: int, scheduler: Callable[[Policies], Scheduler] | None = None
) -> Result:
    """``scheduler``: makes one that takes the place of the usual one."""
    recorder = Recorder(scenario)
    twin = Twin(scenario, policies, seed, [recorder])
    if scheduler is not None:
        twin.scheduler = scheduler(policies)
    twin.run()
    return recorder.result()


def patient(scenario: Scenario) -> Scenario:
    """The same with deadlines that nobody misses: for comparisons of latency, where losing requests would flatter."""
    phases = tuple(
        replace(phase, mix=tuple((weight, replace(kind, deadline=FOR_EVER)) for weight, kind in phase.mix))
        for phase in scenario.workload.phases
    )
    return replace(scenario, workload=Workload(phases))


def knowing(scenario: Scenario) -> CostModel:
    """A cost model seeded with the truth."""
    return CostModel(server.profile for server in scenario.servers)


def mean_phase(scenario: Scenario) -> Phase:
    """All phases as one, weighted by their requests."""
    parts = [(phase.rate * phase.seconds / sum(w for w, _ in phase.mix), phase) for phase in scenario.workload.phases]
    mix = tuple((share * weight, kind) for share, phase in parts for weight, kind in phase.mix)
    return Phase(scenario.workload.seconds, mix, rate=1.0)


class PlanCache:
    """Role plans, reused where demand and speeds are alike (see the grids above)."""

    def __init__(self) -> None:
        self._plans: dict[tuple[object, ...], Plan | None] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def plan(self, problem: Problem) -> Plan | None:
        """None where no assignment gives every role a holder."""
        largest = max(problem.demand.values())
        demand = {role: max(1, round(d / largest / DEMAND_GRID)) * DEMAND_GRID for role, d in problem.demand.items()}
        classes = {name: _rounded(cls) for name, cls in problem.classes.items()}
        kinds = tuple((name, cls.memory_bytes, *cls.needs.items()) for name, cls in classes.items())
        servers = sorted(problem.servers, key=_among_equals)
        numbered = tuple(replace(s, id=ServerId(f"{n:06}"), drain_seconds=0.0) for n, s in enumerate(servers))
        key = (kinds, numbered, *demand.items(), problem.exclusive, problem.slack)
        if key not in self._plans:
            self._plans[key] = _plan(replace(problem, demand=demand, classes=classes, servers=numbered))
        found = self._plans[key]
        if found is None:
            return None
        assignment = {server.id: found.assignment[number.id] for server, number in zip(servers, numbered, strict=True)}
        scaled = {name: getattr(found, name) / largest for name in ("capacity", "present", "bound")}
        return replace(found, assignment=assignment, problem=problem, **scaled)


def _among_equals(server: Server) -> tuple[object, ...]:
    """The order in which the solver lets them stay: numbers instead of names and drains make problems alike."""
    return server.cls, sorted(server.roles), server.fixed, len(server.warm), -server.drain_seconds, server.id


def _rounded(cls: ServerClass) -> ServerClass:
    needs = {
        role: replace(
            need,
            speed=_on_grid(need.speed),
            load_seconds=_on_grid(need.load_seconds),
            warm_seconds=_on_grid(need.seconds(warm=True)),
        )
        for role, need in cls.needs.items()
    }
    return replace(cls, needs=needs)


def _on_grid(value: float) -> float:
    return exp(round(log(value) / SPEED_GRID) * SPEED_GRID) if value > 0 else 0.0


def _plan(problem: Problem) -> Plan | None:
    try:
        return plan(problem)
    except Infeasible:
        return None


PLANS = PlanCache()
"""Of this process."""
