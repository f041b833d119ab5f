"""Policies by name, new for every run, for programs that simulate."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.cost.model import CostModel
from scheduler.cost.profile import Profile
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.policy import AdmitUpTo, Policies
from scheduler.sim.setup import Scenario

NAMES = ("elastic", "first-come")

MANY = 10**6


def named(name: str, scenario: Scenario, profiles: Iterable[Profile] | None = None) -> Policies:
    """``elastic``: everything in ``scheduler.elastic``; ``first-come``: the core's defaults, roles as they are.

    Costs are seeded by ``profiles``, or by the true ones. A backlog, where the scenario has one, is admitted.
    """
    known = [server.profile for server in scenario.setups] if profiles is None else profiles
    limit = MANY if any(phase.backlog for phase in scenario.workload.phases) else 1000
    if name == "elastic":
        return elastic_policies(ElasticSettings(max_requests=limit), known)
    if name == "first-come":
        return Policies(admission=AdmitUpTo(limit), cost=CostModel(known))
    raise ValueError(f"there are no policies named {name!r}; there are {', '.join(NAMES)}")
