"""How much of the demand can be served: by the best role sets (the fluid bound, docs/simulator.md), or by given."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.roles.problem import Allocation, Group, Problem
from scheduler.roles.programme import Programme


def fluid_bound(problem: Problem) -> Allocation:
    """The best allocation, whatever the servers hold now; those that are fixed count as they are.

    Raises ``Infeasible`` when not every role can have a holder.
    """
    return Programme(problem, problem.held(fixed=True), problem.choices(largest=True)).most_capacity()


def capacity(problem: Problem, counts: Mapping[Group, int] | None = None) -> float:
    """Multiples of the demand that an assignment serves: the present one, or ``counts`` servers per group.

    0 when a role has no holder.
    """
    held = problem.held() if counts is None else counts
    useful = {group: n for group, n in held.items() if n and group[1] & problem.demand.keys()}
    if problem.demand.keys() - {role for _, roles in useful for role in roles}:
        return 0.0
    return Programme(problem, useful, useful).most_capacity().capacity
