"""How much work servers carry, in the proportions in which it is asked for: the fluid bound, remembered."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose

from scheduler.roles.bound import fluid_bound
from scheduler.roles.problem import Infeasible, Problem, Server, ServerClass, Stage
from wire.types import Role, ServerId

Counts = Mapping[str, int]
"""Servers by class."""
GRAIN = 50
"""Shares of the stages are told apart in steps of one in so many."""
MEMORY = 512
ALIKE = 0.02
"""Speeds that differ by less are taken as equal."""


class Capacities:
    """Of fleets made of some classes, for one mix of work."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], float] = {}

    def of(self, counts: Counts, classes: Mapping[str, ServerClass], shares: Mapping[Role, float]) -> float:
        """Reference seconds of work done per second; 0 where not every stage finds a holder."""
        present = {name: n for name, n in sorted(counts.items()) if n}
        if not present:
            return 0.0
        mix = _rounded(shares)
        key = (tuple((name, n, _traits(classes[name])) for name, n in present.items()), tuple(mix.items()))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MEMORY:
                self._known.clear()
            found = self._known[key] = _solved(present, classes, mix)
        return found


def _traits(cls: ServerClass) -> tuple[object, ...]:
    return cls.memory_bytes, tuple(sorted((str(stage), round(need.speed, 2)) for stage, need in cls.needs.items()))


def _rounded(shares: Mapping[Role, float]) -> dict[Stage, float]:
    total = sum(shares.values())
    if total <= 0:
        return dict.fromkeys(sorted(shares), 1.0)
    return {role: max(round(GRAIN * share / total), 0.1) / GRAIN for role, share in sorted(shares.items())}


def _solved(counts: Counts, classes: Mapping[str, ServerClass], mix: Mapping[Stage, float]) -> float:
    total = sum(mix.values())
    if all(_does_all(classes[name], mix) for name in counts):
        return sum(n * _speed(classes[name]) for name, n in counts.items())
    servers = tuple(Server(ServerId(f"{name}/{i}"), name) for name, n in counts.items() for i in range(n))
    try:
        return fluid_bound(Problem(classes, servers, mix)).capacity * total
    except Infeasible:
        return 0.0


def _does_all(cls: ServerClass, mix: Mapping[Stage, float]) -> bool:
    """Every stage at once, and equally fast: no choice of roles has to be made."""
    wanted = frozenset(mix)
    return cls.fits(wanted) and all(isclose(cls.needs[stage].speed, _speed(cls), rel_tol=ALIKE) for stage in wanted)


def _speed(cls: ServerClass) -> float:
    return next(iter(cls.needs.values())).speed
