"""A simulated output store, and the credits that its free room allows (``stage_server.runtime.credits``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import inf

from wire.types import READERS, Handle, Role


class Store:
    """Bytes retained and reserved, up to a capacity."""

    def __init__(self, capacity: int | None, largest: Mapping[Role, int]):
        """``largest``: bytes of a role's largest output."""
        self._capacity = inf if capacity is None else capacity
        self._largest = largest
        self._held: dict[Handle, int] = {}
        self.used = 0
        """Retained and reserved."""

    def room(self, role: Role, outputs: int, roles: frozenset[Role]) -> bool:
        """So many more outputs fit, and one of each later role held here after them: or nothing could empty it."""
        spare = sum(self._largest[later] for later in READERS[role] if later in roles)
        return self.used + outputs * self._largest[role] + spare <= self._capacity

    def reserve(self, role: Role, nbytes: int, roles: frozenset[Role]) -> bool:
        spare = sum(self._largest[later] for later in READERS[role] if later in roles)
        if self.used + nbytes + spare > self._capacity:
            return False
        self.used += nbytes
        return True

    def unreserve(self, nbytes: int) -> None:
        self.used -= nbytes

    def keep(self, handle: Handle, nbytes: int) -> None:
        self._held[handle] = nbytes
        self.used += nbytes

    def release(self, handles: Iterable[Handle]) -> None:
        for handle in handles:
            self.used -= self._held.pop(handle, 0)

    def handles(self) -> tuple[Handle, ...]:
        return tuple(self._held)

    def __contains__(self, handle: object) -> bool:
        return handle in self._held


class Credits:
    """Cumulative limits since the last Hello; only ever raised."""

    def __init__(self, slots: Mapping[Role, int]) -> None:
        """``slots``: jobs of each role that may be here at once."""
        self._slots = dict(slots)
        self._received: Counter[Role] = Counter()
        self._limits: dict[Role, int] = {}

    def restart(self) -> None:
        self._received.clear()
        self._limits.clear()

    def take(self, role: Role) -> None:
        self._received[role] += 1

    def limits(self) -> dict[Role, int]:
        return dict(self._limits)

    def raise_limits(
        self,
        roles: Iterable[Role],
        active: Mapping[Role, int],
        fetching: Mapping[Role, int],
        room: Callable[[Role, int], bool],
    ) -> bool:
        """True if any was raised. ``active``: jobs under way; ``fetching``: those of them without room yet."""
        raised = False
        for role in roles:
            while (free := self._unused(role)) + active[role] < self._slots[role] and room(
                role, free + fetching[role] + 1
            ):
                self._limits[role] = max(self._limits.get(role, 0), self._received[role]) + 1
                raised = True
        return raised

    def _unused(self, role: Role) -> int:
        return max(0, self._limits.get(role, 0) - self._received[role])
