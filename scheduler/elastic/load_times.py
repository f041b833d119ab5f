"""What loading a role takes: announced by servers, corrected by what they measured, from files and from host memory."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log

from scheduler.spec import ServerSpec
from wire.types import Role

GAIN = 0.3
"""Weight of the latest measurement."""

Kind = tuple[str, Role, bool]
"""Device class, role, whether the weights were in host memory."""


class LoadTimes:
    """Per device class and role; one of which nothing was measured takes what the others of its class taught."""

    def __init__(self) -> None:
        self._factors: dict[Kind, float] = {}
        """Logarithm of measured seconds over announced ones."""
        self._classes: dict[tuple[str, bool], float] = {}

    def seconds(self, spec: ServerSpec, role: Role, *, warm: bool) -> float:
        """Until a server of this kind holds the role as well."""
        general = self._classes.get((spec.device_class, warm), 0.0)
        return exp(self._factors.get((spec.device_class, role, warm), general)) * _announced(spec, role, warm=warm)

    def measured(self, spec: ServerSpec, roles: Iterable[Role], seconds: float, *, warm: bool) -> None:
        """All of ``roles`` were loaded together, in ``seconds``."""
        added = tuple(roles)
        expected = sum(self.seconds(spec, role, warm=warm) for role in added)
        if expected <= 0 or seconds <= 0:
            return
        step = GAIN * log(seconds / expected)
        general = self._classes.get((spec.device_class, warm), 0.0)
        for role in added:
            kind = (spec.device_class, role, warm)
            self._factors[kind] = self._factors.get(kind, general) + step
        self._classes[(spec.device_class, warm)] = general + step


def _announced(spec: ServerSpec, role: Role, *, warm: bool) -> float:
    cost = spec.capable[role]
    return cost.warm_seconds if warm and cost.warm_seconds else cost.load_seconds
