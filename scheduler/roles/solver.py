"""The plan: most capacity first, then fewest role changes, then whole servers by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

from scheduler.roles.bound import capacity, fluid_bound
from scheduler.roles.problem import Allocation, Group, Infeasible, Problem, RoleSet, Server, named
from scheduler.roles.programme import Programme
from wire.types import ServerId


@dataclass(frozen=True, slots=True)
class Plan:
    """Who shall hold what."""

    assignment: Mapping[ServerId, RoleSet]
    """Every server of the problem."""
    capacity: float
    """Multiples of the demand it serves."""
    present: float
    """The same for what the servers hold now; 0 when a role has no holder."""
    bound: float
    """The same for the best allocation, moves free."""
    problem: Problem

    @property
    def changes(self) -> Mapping[ServerId, RoleSet]:
        """Those whose roles differ from what they hold."""
        held = {server.id: server.roles for server in self.problem.servers}
        return {server: roles for server, roles in self.assignment.items() if held[server] != roles}


def plan(problem: Problem) -> Plan:
    """Solve. Deterministic; under 50 ms for 1,000 servers in several classes. Raises ``Infeasible``."""
    best = fluid_bound(problem)
    least, present = best.capacity * (1 - problem.slack), capacity(problem)
    # A server that holds nothing is put to use even where the capacity does not need it.
    if present >= least and all(server.roles or server.fixed for server in problem.servers):
        counts: Mapping[Group, int] = problem.held()
    else:
        counts = (
            Programme(problem, problem.held(fixed=True), problem.choices()).fewest_moves(least, problem.held()).counts
        )
    return Plan(
        assignment=_concrete(problem, counts),
        capacity=capacity(problem, counts),
        present=present,
        bound=best.capacity,
        problem=problem,
    )


def best_integer(problem: Problem) -> Allocation:
    """The best allocation by trying all: for tests and benchmarks, up to about eight servers."""
    free = Counter(server.cls for server in problem.servers if not server.fixed)
    choices = [_every_choice(problem, name, n) for name, n in sorted(free.items())]
    best: Allocation | None = None
    for combination in product(*choices):
        counts = sum(combination, start=problem.held(fixed=True))
        found = capacity(problem, counts)
        if found > (best.capacity if best else 0.0):
            best = Allocation(found, dict(counts))
    if best is None:
        raise Infeasible("no assignment gives every role a holder")
    return best


def _every_choice(problem: Problem, name: str, servers: int) -> list[Counter[Group]]:
    sets = problem.allowed_sets(problem.classes[name]) or (frozenset(),)
    return [Counter((name, roles) for roles in some) for some in combinations_with_replacement(sets, servers)]


def _concrete(problem: Problem, counts: Mapping[Group, int]) -> dict[ServerId, RoleSet]:
    """Whoever can stay stays, first those with least in host memory and most to finish; the others take what is left,
    cheapest load first."""
    left = Counter(counts)
    assignment: dict[ServerId, RoleSet] = {}
    for server in sorted(problem.servers, key=lambda s: (not s.fixed, len(s.warm), -s.drain_seconds, s.id)):
        if left[(server.cls, server.roles)] > 0:
            left[(server.cls, server.roles)] -= 1
            assignment[server.id] = server.roles
    movers = [server for server in sorted(problem.servers, key=lambda s: s.id) if server.id not in assignment]
    for server, group in _cheapest(problem, movers, left):
        assignment[server.id] = group[1]
    return assignment


def _cheapest(problem: Problem, movers: list[Server], left: Counter[Group]) -> Iterator[tuple[Server, Group]]:
    by_group: dict[Group, list[Server]] = {}
    for server in movers:
        by_group.setdefault((server.cls, server.roles), []).append(server)
    pairs = [(old, new) for old in by_group for new in left if old[0] == new[0] and left[new] > 0]
    for old, new in sorted(pairs, key=lambda pair: (_load_seconds(problem, *pair), _name(pair[0]), _name(pair[1]))):
        cls = problem.classes[old[0]]
        by_group[old].sort(key=lambda server: (server.load_seconds(cls, new[1]), server.id))
        while by_group[old] and left[new] > 0:
            left[new] -= 1
            yield by_group[old].pop(0), new


def _load_seconds(problem: Problem, old: Group, new: Group) -> float:
    needs = problem.classes[old[0]].needs
    return sum(needs[role].load_seconds for role in new[1] - old[1])


def _name(group: Group) -> tuple[str, str]:
    return group[0], named(group[1])
