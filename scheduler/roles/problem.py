"""The role assignment problem: servers, what they can hold and how fast, and what is asked of each stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, combinations
from math import isfinite
from typing import NamedTuple

from wire.types import ModelKey, Role, ServerId

ROLE_ORDER = {role: number for number, role in enumerate(Role)}


class Duty(NamedTuple):
    """A stage of one of several models that are planned for together, as they share servers."""

    model: ModelKey
    role: Role

    def __str__(self) -> str:
        return f"{self.role} of {self.model}"


Stage = Role | Duty
"""What a server may hold. A problem has either roles, of the one model, or duties."""

RoleSet = frozenset[Stage]
Group = tuple[str, RoleSet]
"""Servers of one class that hold the same roles: they are interchangeable."""


MOST_COMBINED = 6
"""Stages of which every combination is looked at; beyond, as with three models, whole models are combined."""


def _rank(stage: Stage) -> tuple[str, int]:
    return (stage.model, ROLE_ORDER[stage.role]) if isinstance(stage, Duty) else ("", ROLE_ORDER[stage])


def in_order(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """By model, then as requests pass through them."""
    return tuple(sorted(stages, key=_rank))


def combined(stages: Iterable[Stage]) -> Iterator[RoleSet]:
    """Every set of these, smaller ones first; of many models only sets within one model, and whole models together."""
    mine = in_order(stages)
    if len(mine) <= MOST_COMBINED:
        yield from (frozenset(some) for size in range(1, len(mine) + 1) for some in combinations(mine, size))
        return
    by_model: dict[str, list[Stage]] = {}
    for stage in mine:
        by_model.setdefault(_rank(stage)[0], []).append(stage)
    found = {frozenset(some) for one in by_model.values() for n in range(len(one)) for some in combinations(one, n + 1)}
    for size in range(2, len(by_model) + 1):
        found |= {frozenset(chain(*some)) for some in combinations(by_model.values(), size)}
    yield from sorted(found, key=lambda some: (len(some), [_rank(stage) for stage in in_order(some)]))


def named(stages: Iterable[Stage]) -> str:
    """For people."""
    return ", ".join(str(stage) for stage in in_order(stages))


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
    """From files."""
    warm_seconds: float | None = None
    """From host memory; None: not known, taken to be as long."""
    common_bytes: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of its weights, what stages with the same key hold once together."""

    def seconds(self, *, warm: bool) -> float:
        """Until it is loaded."""
        return self.load_seconds if not warm or self.warm_seconds is None else self.warm_seconds

    def __post_init__(self) -> None:
        if not isfinite(self.speed) or self.speed <= 0:
            raise ValueError(f"a role's speed is above 0, not {self.speed}; leave out the roles a class cannot take")


def resident_bytes(held: Iterable[tuple[int, Mapping[str, int]]]) -> int:
    """Weights on one device, of roles with so many bytes each and that of them in common."""
    total, common = 0, dict[str, int]()
    for nbytes, shared in held:
        total += nbytes - sum(shared.values())
        common |= shared
    return total + sum(common.values())


@dataclass(frozen=True, slots=True)
class ServerClass:
    """Servers that are equal but for what they hold now."""

    name: str
    memory_bytes: int
    needs: Mapping[Stage, RoleNeed]
    """Of the roles that it can take."""

    def fits(self, roles: RoleSet) -> bool:
        """All weights stay resident; one job computes at a time, so the largest activation counts."""
        if not roles <= self.needs.keys():
            return False
        weights = resident_bytes((self.needs[role].weights_bytes, self.needs[role].common_bytes) for role in roles)
        return weights + max((self.needs[role].activation_bytes for role in roles), default=0) <= self.memory_bytes

    def feasible_sets(self) -> tuple[RoleSet, ...]:
        """Every set of one role or more that fits, smaller ones first."""
        return tuple(stages for stages in combined(self.needs) if self.fits(stages))


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
    warm: RoleSet = frozenset()
    """Not held, but in its host memory."""

    def load_seconds(self, cls: ServerClass, roles: RoleSet) -> float:
        """Until it holds ``roles``, what it computes aside."""
        return sum(cls.needs[role].seconds(warm=role in self.warm) for role in roles - self.roles)


@dataclass(frozen=True, slots=True)
class Problem:
    """Demand is in reference device-seconds per second for each role that must have a holder, or the same per request:
    only the proportions matter to the plan; the capacity is in multiples of the demand."""

    classes: Mapping[str, ServerClass]
    servers: tuple[Server, ...]
    demand: Mapping[Stage, float]
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
                raise ValueError(f"{server.id} holds {named(strange)}, which its class {server.cls} cannot take")

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
    shares: Mapping[tuple[Group, Stage], float] = field(default_factory=dict)
    """Servers' worth of time that the group gives to the role."""


def maximal(sets: tuple[RoleSet, ...]) -> tuple[RoleSet, ...]:
    """Those that no other contains."""
    return tuple(roles for roles in sets if not any(roles < other for other in sets))
