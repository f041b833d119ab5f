"""The servers of one model as the autoscaler counts them: who is here, who comes and goes when, and what they carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scheduler.cost.work import Target, Work
from scheduler.roles.problem import RoleNeed, ServerClass, Stage
from scheduler.scaling.capacity import Capacities
from scheduler.scaling.outlook import Capacity
from scheduler.scaling.pools import Pool
from scheduler.state import Server
from scheduler.view import View
from wire.types import ModelKey, Role

UNLIMITED = 1 << 62
"""Bytes of a server that did not say how many it has."""
Works = Mapping[Role, Work]
"""A job of each role, by which devices are compared."""


@dataclass(slots=True)
class Fleet:
    shares: Mapping[Role, float]
    """Work of a request at each stage."""
    capacities: Capacities
    classes: dict[str, ServerClass] = field(default_factory=dict)
    """By pool, and of the servers that belong to none."""
    present: Counter[str] = field(default_factory=Counter)
    """By class; those that are to go left out."""
    changes: list[tuple[float, str, int]] = field(default_factory=list)
    """(seconds from now, class, servers that come or go)."""

    def total(self, extra: Mapping[str, int]) -> float:
        """Work per second once everything that was ordered, and ``extra``, is here."""
        return self._carried(self._after(self.changes, extra))

    def capacity(self, extra: Mapping[str, int], starts: Mapping[str, float]) -> Capacity:
        """Over time, with ``extra`` more of each class, ordered now, or fewer, given up now.

        ``starts``: seconds that one of each takes to start.
        """
        given_up = {name: n for name, n in extra.items() if n < 0}
        changes = self.changes + [(starts[name], name, n) for name, n in extra.items() if n > 0]
        moments = sorted({0.0, *(at for at, _, _ in changes)})
        return [
            (moment, self._carried(self._after([change for change in changes if change[0] <= moment], given_up)))
            for moment in moments
        ]

    def _after(self, changes: Iterable[tuple[float, str, int]], extra: Mapping[str, int]) -> Counter[str]:
        counts = Counter(self.present)
        for _, name, n in changes:
            counts[name] += n
        for name, n in extra.items():
            counts[name] += n
        return counts

    def _carried(self, counts: Mapping[str, int]) -> float:
        return self.capacities.of({name: max(0, n) for name, n in counts.items()}, self.classes, self.shares)


def class_of(name: str, server: Server, roles: Iterable[Role], works: Works, view: View) -> ServerClass:
    """What a server can do, as it said itself; of its pool's ``roles`` alone."""
    spec = server.spec
    needs: dict[Stage, RoleNeed] = {
        role: RoleNeed(_speed(role, spec.target, works, view, spec.model), cost.weight_bytes, cost.activation_bytes)
        for role in roles
        if (cost := spec.capable.get(role)) is not None
    }
    return ServerClass(name, spec.memory_bytes or UNLIMITED, needs)


def assumed_class(pool: Pool, model: ModelKey, works: Works, view: View) -> ServerClass:
    """While none of the pool's servers was ever here: every role fits, as fast as the device's profile says."""
    target = target_of(pool, model, view)
    needs: dict[Stage, RoleNeed] = {role: RoleNeed(_speed(role, target, works, view, model)) for role in pool.roles}
    return ServerClass(pool.name, UNLIMITED, needs)


def target_of(pool: Pool, model: ModelKey, view: View) -> Target:
    reference = view.targets[model]
    return Target.of(pool.model, pool.device_class, reference.precision) if pool.device_class else reference


def class_name(server: Server) -> str:
    """Of servers that belong to no pool: those of one name can do the same."""
    spec = server.spec
    return f"{spec.device_class} {spec.memory_bytes} {'+'.join(sorted(spec.capable))} of no pool"


def _speed(role: Role, target: Target, works: Works, view: View, model: ModelKey) -> float:
    """Reference seconds of work per second."""
    work = works.get(role)
    return view.cost.seconds(work, view.targets[model]) / view.cost.seconds(work, target) if work is not None else 1.0
