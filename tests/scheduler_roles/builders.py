"""Problems for tests, in the proportions of real models."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.roles.problem import Problem, RoleNeed, RoleSet, Server, ServerClass
from wire.types import REQUIRED, Role, ServerId

E, D, V = Role.ENCODER, Role.DIT, Role.DECODER
GB = 10**9
ALL: RoleSet = frozenset(REQUIRED)


def server_class(name: str = "gpu", memory_gb: float = 80, speed: float = 1.0, **fields: float) -> ServerClass:
    """FLUX.1-dev's sizes: all roles fit 39 GB, dit and decoder 28.2 GB, encoder and decoder 13.2 GB."""
    weights = {E: 10.0, D: 24.0, V: 0.2}
    activations = {E: 1.0, D: 4.0, V: 3.0}
    needs = {
        role: RoleNeed(
            speed=speed * fields.get(role.value, 1.0),
            weights_bytes=int(weights[role] * GB),
            activation_bytes=int(activations[role] * GB),
            load_seconds=weights[role] / 2,
        )
        for role in REQUIRED
    }
    return ServerClass(name, int(memory_gb * GB), needs)


def servers(cls: str, *held: RoleSet | set[Role], fixed: bool = False) -> tuple[Server, ...]:
    return tuple(Server(ServerId(f"{cls}-{i:04}"), cls, frozenset(roles), fixed) for i, roles in enumerate(held))


def problem(
    classes: list[ServerClass], members: tuple[Server, ...], demand: Mapping[Role, float], *, exclusive: bool = False
) -> Problem:
    return Problem({cls.name: cls for cls in classes}, members, demand, exclusive=exclusive)
