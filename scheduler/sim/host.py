"""A simulated server's host memory and the disk behind it: which roles' weights are there, and when others will be."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.sim.clock import Clock
from scheduler.sim.setup import ServerSetup
from wire.types import Role


class HostMemory:
    """Weights are read one role after the other; those not used for longest make room."""

    def __init__(self, setup: ServerSetup, clock: Clock):
        self._setup = setup
        self._clock = clock
        self._kept: list[Role] = []
        """The one used last at the end."""
        self._ready_at: dict[Role, float] = {}
        """Of roles that are being read, or will be."""

    def holds(self, roles: Iterable[Role]) -> bool:
        return all(role in self._kept and self._ready_at.get(role, 0.0) <= self._clock.now for role in roles)

    def keep(self, roles: Iterable[Role]) -> None:
        """They are here: they have been used."""
        for role in roles:
            self._touch(role)

    def read(self, roles: Iterable[Role]) -> float:
        """Seconds until all of them can be copied to the device; they are kept as far as there is room."""
        now, done = self._clock.now, self._clock.now
        for role in (role for role in Role if role in set(roles)):
            if role not in self._kept:
                free_at = max([now, *self._ready_at.values()])
                self._ready_at[role] = free_at + self._setup.read_seconds(role)
            done = max(done, self._ready_at.get(role, now))
            self._touch(role)
        return done - now

    def _touch(self, role: Role) -> None:
        kept = [*(other for other in self._kept if other is not role), role]
        while self._setup.host_bytes is not None and self._bytes(kept) > self._setup.host_bytes:
            kept.pop(0)
        self._kept = kept

    def _bytes(self, roles: Iterable[Role]) -> int:
        return sum(self._setup.profile.roles[role].weights_bytes for role in roles)
