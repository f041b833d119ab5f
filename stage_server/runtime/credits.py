"""Flow control: how many more attempts the gateway may send for each role (``wire.to_gateway.Grant``). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from wire.types import Role

PREFETCHED = 1
"""Attempts of a role that may be here beside those that compute: their inputs come in meanwhile; 0 for none."""

MAX_ATTEMPTS = 128
"""Of one role, beyond which more are refused, whatever was granted."""


class Credits:
    """Cumulative limits, counted from the last ``Hello``. They are only ever raised.

    ``together``: how many attempts of a role may compute at once; one of a role that it does not name.
    ``prefetched``: as ``PREFETCHED``.
    """

    def __init__(self, together: Mapping[Role, int], prefetched: int = PREFETCHED) -> None:
        self._together = together
        self._prefetched = prefetched
        self._received: Counter[Role] = Counter()
        self._limits: dict[Role, int] = {}
        self.blocked: frozenset[Role] = frozenset()
        """Roles without work because the store is full; the operator knows."""

    def restart(self) -> None:
        """A ``Hello`` goes out: both sides count from zero again."""
        self._received.clear()
        self._limits.clear()

    def limits(self) -> dict[Role, int]:
        return dict(self._limits)

    def take(self, role: Role) -> None:
        """An attempt counts whether or not the server goes on to accept it."""
        self._received[role] += 1

    def raise_limits(
        self,
        roles: Iterable[Role],
        active: Mapping[Role, int],
        unreserved: Mapping[Role, int],
        room: Callable[[Role, int], bool],
    ) -> bool:
        """Raise what can be raised; True if anything was.

        ``active``: attempts under way per role; ``unreserved``: attempts whose output may have no space of its own yet.
        ``room(role, n)``: n more outputs of the role fit into the store.
        """
        raised = False
        for role in roles:
            slots = self._together.get(role, 1) + self._prefetched
            # Space is asked for all that may still want some: granted and not here yet, here without a reservation, and
            # the one to be granted.
            awaited = unreserved.get(role, 0) + 1
            while (free := self._unused(role)) + active.get(role, 0) < slots and room(role, free + awaited):
                self._limits[role] = max(self._limits.get(role, 0), self._received[role]) + 1
                raised = True
        return raised

    def complaints(self, roles: Iterable[Role], active: Mapping[Role, int]) -> list[str]:
        """About those of ``roles`` that may get no more work and have none: after ``raise_limits``, for want of room.

        Each once: work that does not come is seen nowhere else.
        """
        spent = [role for role in roles if not self._unused(role) and not active.get(role, 0)]
        new = [role for role in spent if role not in self.blocked]
        self.blocked = frozenset(spent)
        return [
            f"the output store has no room for another output of {role}: no {role} work until some are released"
            for role in new
        ]

    def _unused(self, role: Role) -> int:
        return max(0, self._limits.get(role, 0) - self._received[role])
