"""What role plans are made for: machines, each with the servers that share its device, one for each model that it may
serve; and the circle of models that are planned for together because they share machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log

from scheduler.roles.problem import Duty, RoleSet, Stage
from scheduler.state import Server
from scheduler.view import View
from wire.types import ModelKey, Role, ServerId

SPEED_CLASS = log(1.5)
"""Servers whose speeds differ by less than about this are planned for as equals."""
UNLIMITED = 1 << 62
"""Bytes of a server that did not say how many it has."""

Circle = tuple[ModelKey, ...]
"""Models that share machines, directly or through others; mostly one by itself."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and the servers that have it: one, or one for each model that its process may serve."""

    servers: tuple[Server, ...]
    alone: bool
    """The circle has one model, so that its stages are plain roles."""

    @property
    def id(self) -> ServerId:
        return self.servers[0].id

    @property
    def memory_bytes(self) -> int:
        return max(server.spec.memory_bytes for server in self.servers) or UNLIMITED

    def stage(self, server: Server, role: Role) -> Stage:
        return role if self.alone else Duty(server.spec.model, role)

    def stages(self, held: Mapping[ServerId, Iterable[Role]]) -> RoleSet:
        """Of these roles of each server."""
        return frozenset(self.stage(server, role) for server in self.servers for role in held[server.id])

    def apart(self, stages: RoleSet) -> Iterator[tuple[Server, frozenset[Role]]]:
        """What each of its servers is to hold; those that give something up come first."""
        parts = [
            (server, frozenset(role for role in Role if self.stage(server, role) in stages)) for server in self.servers
        ]
        yield from sorted(parts, key=lambda part: part[0].roles <= part[1])

    @property
    def held(self) -> RoleSet:
        """And served, or while it changes what stays."""
        return self.stages(
            {
                server.id: server.roles - server.aside if server.switching is None else server.serving
                for server in self.servers
            }
        )

    @property
    def coming(self) -> RoleSet | None:
        """What it will hold, while any of its servers changes its roles."""
        if all(server.switching is None for server in self.servers):
            return None
        return self.stages(
            {
                server.id: server.roles - server.aside if server.switching is None else server.switching[1]
                for server in self.servers
            }
        )

    @property
    def in_host(self) -> RoleSet:
        return self.stages({server.id: server.warm - server.roles for server in self.servers})

    @property
    def changed_at(self) -> float:
        """When one of its servers last got other roles."""
        return max(server.roles_since if server.roles_since > server.joined_at else -inf for server in self.servers)

    def class_name(self, view: View) -> str:
        """Machines of one class can hold the same, equally fast."""
        return " & ".join(_class_name(server, view, alone=self.alone) for server in self.servers)


def _class_name(server: Server, view: View, *, alone: bool) -> str:
    spec = server.spec
    slowness = round(log(view.cost.speed(spec.name)) / SPEED_CLASS)
    sizes = ",".join(
        f"{role}:{cost.weight_bytes}+{cost.activation_bytes}{sorted(cost.common_bytes.items()) or ''}"
        for role, cost in sorted(spec.capable.items())
    )
    model = "" if alone else f"{spec.model}/"
    return f"{model}{spec.device_class}/{spec.target.precision}/{spec.memory_bytes}/{sizes}/{slowness:+d}"


def machines(circle: Circle, view: View) -> list[Machine]:
    """All that serve any of these models."""
    found: dict[str, list[Server]] = {}
    for server in view.servers.values():
        if server.spec.model in circle:
            found.setdefault(server.spec.device or server.id, []).append(server)
    alone = len(circle) == 1
    return [Machine(tuple(sorted(servers, key=lambda each: each.spec.model)), alone) for servers in found.values()]


def circles(models: Sequence[ModelKey], view: View) -> list[Circle]:
    """Each of these models in one, in their order; those that it shares machines with are there, too."""
    linked: dict[ModelKey, set[ModelKey]] = {}
    for servers in view.devices.values():
        shared = {server.spec.model for server in servers}
        joined = shared.union(*(linked.get(model, set()) for model in shared))
        linked |= dict.fromkeys(joined, joined)
    return list(dict.fromkeys(tuple(sorted(linked.get(model, {model}))) for model in models))
