"""Servers that may be started and stopped, and how eagerly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from wire.types import REQUIRED, Role

ALL_ROLES = frozenset(REQUIRED)


@dataclass(frozen=True, slots=True)
class Pool:
    """Servers of one model and device class, alike but for what they hold."""

    name: str
    """Servers name it in their introduction."""
    model: str
    """As clients call it."""
    min: int = 0
    """0: it may be empty while nothing is asked of the model."""
    max: int = 1
    roles: frozenset[Role] = ALL_ROLES
    """That its servers may hold."""
    device_class: str = ""
    """Tells how fast its servers are while none was seen; empty: as fast as the model's reference."""
    cold_start_seconds: float = 120.0
    """From the order to the server's introduction; what is measured takes its place."""
    price: float = 1.0
    """Of a server, relative to other pools': of equals, the cheaper is started first and stopped last."""

    def __post_init__(self) -> None:
        if not (self.name and self.model):
            raise ValueError("a pool needs a name and a model")
        if not 0 <= self.min <= self.max or not self.max:
            raise ValueError(
                f"pool {self.name}: min is 0 or more, max at least min and at least 1, not {self.min} and {self.max}"
            )
        if not self.roles:
            raise ValueError(f"pool {self.name}: its servers must be allowed some role")
        for name in ("cold_start_seconds", "price"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ValueError(f"pool {self.name}: {name} is above 0, not {value}")


def distinct(pools: Iterable[Pool]) -> tuple[Pool, ...]:
    """Raises ``ValueError`` where two have one name."""
    found = tuple(pools)
    names = [pool.name for pool in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two pools are named {', '.join(twice)}")
    return found


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """``docs/autoscaling.md`` says when to turn which."""

    interval_seconds: float = 5.0
    """Between two decisions."""
    dwell_seconds: float = 60.0
    """A pool that has grown gives no server up for so long, and none that its predicted peak needs within so long after
    another could have been started."""
    idle_seconds: float = 300.0
    """Without a request, after which pools may go below what holds every role."""
    wait_share: float = 0.55
    """Of the time that deadlines leave for waiting, so much may be waited …"""
    most_wait_seconds: float = 60.0
    """… but no longer than this."""
    late_chance: float = 0.05
    """Of a request, to wait longer than that by chance alone: decides how much is kept in reserve."""
    grow_errors: float = 0.0
    """Standard errors above the expected demand that pools grow for …"""
    shrink_errors: float = 0.25
    """… and that must fit without the server that is given up."""

    def __post_init__(self) -> None:
        for name in ("interval_seconds", "most_wait_seconds"):
            if not (isfinite(value := getattr(self, name)) and value > 0):
                raise ValueError(f"{name} is above 0, not {value}")
        for name in ("dwell_seconds", "idle_seconds", "grow_errors", "shrink_errors"):
            if not (isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} is 0 or more, not {value}")
        for name in ("wait_share", "late_chance"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is above 0 and below 1, not {value}")
