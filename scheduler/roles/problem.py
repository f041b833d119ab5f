"""The role assignment problem: servers, what they can hold and how fast, and what is asked of each stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite

from wire.types import Role, ServerId

RoleSet = frozenset[Role]
Group = tuple[str, RoleSet]
"""Servers of one class that hold the same roles: they are interchangeable."""


class Infeasible(Exception):
    """No assignment gives every role a holder; the text says why."""


@dataclass(frozen=True, slots=True)
class RoleNeed:
    """What one role takes on, and gives from, a server of a class."""

    speed: float
    """Reference device-seconds of this role's work done per second: 1 on the reference class."""
    weights_bytes: int = 0
    activation_bytes: int = 0
    load_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not isfinite(self.speed) or self.speed <= 0:
            raise ValueError(f"a role's speed is above 0, not {self.speed}; leave out the roles a class cannot take")


@dataclass(frozen=True, slots=True)
class ServerClass:
    """Servers that are equal but for what they hold now."""

    name: str
    memory_bytes: int
    needs: Mapping[Role, RoleNeed]
    """Of the roles that it can take."""

    def fits(self, roles: RoleSet) -> bool:
        """All weights stay resident; one job computes at a time, so the largest activation counts."""
        if not roles <= self.needs.keys():
            return False
        weights = sum(self.needs[role].weights_bytes for role in roles)
        return weights + max((self.needs[role].activation_bytes for role in roles), default=0) <= self.memory_bytes

    def feasible_sets(self) -> tuple[RoleSet, ...]:
        """Every set of one role or more that fits, smaller ones first."""
        mine = [role for role in Role if role in self.needs]
        sets = (frozenset(some) for size in range(1, len(mine) + 1) for some in combinations(mine, size))
        return tuple(roles for roles in sets if self.fits(roles))


@dataclass(frozen=True, slots=True)
class Server:
    id: ServerId
    cls: str
    """Name of its ``ServerClass``."""
    roles: RoleSet = frozenset()
    """Held now, or being loaded."""
    fixed: bool = False
    """Pinned, switching, or changed too recently: the plan leaves it as it is."""
    drain_seconds: float = 0.0
    """Until what it computes now is done: of equals, the one that is free first moves."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Demand is in reference device-seconds per second for each role that must have a holder, or the same per request:
    only the proportions matter to the plan; the capacity is in multiples of the demand."""

    classes: Mapping[str, ServerClass]
    servers: tuple[Server, ...]
    demand: Mapping[Role, float]
    exclusive: bool = False
    """One role per server, as in the paper."""
    slack: float = 0.005
    """Share of the capacity that may be given up to spare moves."""

    def __post_init__(self) -> None:
        if not self.demand or not all(isfinite(d) and d >= 0 for d in self.demand.values()):
            raise ValueError(f"demand must name roles with numbers of 0 or more, not {dict(self.demand)}")
        if not any(self.demand.values()):
            raise ValueError("demand is 0 for every role: there is nothing to plan for")
        if unknown := {server.cls for server in self.servers} - self.classes.keys():
            raise ValueError(f"servers of unknown class {', '.join(sorted(unknown))}")
        for server in self.servers:
            if strange := server.roles - self.classes[server.cls].needs.keys():
                raise ValueError(f"{server.id} holds {', '.join(strange)}, which its class {server.cls} cannot take")

    def allowed_sets(self, cls: ServerClass) -> tuple[RoleSet, ...]:
        """Sets the plan may choose for a server of the class: needed roles only, within memory."""
        wanted = self.demand.keys()
        return tuple(
            roles for roles in cls.feasible_sets() if roles <= wanted and not (self.exclusive and len(roles) > 1)
        )

    def counts(self) -> Counter[str]:
        """Servers of each class."""
        return Counter(server.cls for server in self.servers)

    def held(self, *, fixed: bool = False) -> Counter[Group]:
        """Servers of each group as they are now; with ``fixed`` only those that may not change."""
        return Counter((server.cls, server.roles) for server in self.servers if server.fixed or not fixed)

    def choices(self, *, largest: bool = False) -> dict[Group, int]:
        """Groups that a plan may use, with the most servers each can have. What servers hold now is among them.

        With ``largest``, role sets inside others are left out: a further role never lowers the capacity.
        """
        upper = dict(self.held(fixed=largest))
        for name, count in self.counts().items():
            sets = self.allowed_sets(self.classes[name])
            chosen = maximal(sets) if largest else sets
            upper |= dict.fromkeys(((name, roles) for roles in chosen or (frozenset(),)), count)
        return upper


@dataclass(frozen=True, slots=True)
class Allocation:
    """Servers per group, and how each group spends its time."""

    capacity: float
    """Multiples of the demand that can be served."""
    counts: Mapping[Group, int]
    shares: Mapping[tuple[Group, Role], float] = field(default_factory=dict)
    """Servers' worth of time that the group gives to the role."""


def maximal(sets: tuple[RoleSet, ...]) -> tuple[RoleSet, ...]:
    """Those that no other contains."""
    return tuple(roles for roles in sets if not any(roles < other for other in sets))
