"""Flow control: how many more batches the gateway may send for each role (``wire.to_gateway.Grant``). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from wire.types import Role

SLOTS = 2
"""Batches of one role that may be here at once: one computes while the inputs of the next come in."""

MAX_MEMBERS = 128
"""Attempts of one role beyond which more are refused, whatever was granted: four of the largest batches."""


class Credits:
    """Cumulative limits, counted from the last ``Hello``. They are only ever raised."""

    def __init__(self) -> None:
        self._received: Counter[Role] = Counter()
        self._limits: dict[Role, int] = {}

    def restart(self) -> None:
        """A ``Hello`` goes out: both sides count from zero again."""
        self._received.clear()
        self._limits.clear()

    def limits(self) -> dict[Role, int]:
        return dict(self._limits)

    def take(self, role: Role) -> None:
        """A batch counts whether or not the server goes on to accept it."""
        self._received[role] += 1

    def raise_limits(
        self,
        roles: Iterable[Role],
        active: Mapping[Role, int],
        unreserved: Mapping[Role, int],
        room: Callable[[Role, int], bool],
    ) -> bool:
        """Raise what can be raised; True if anything was.

        ``active``: batches under way per role; ``unreserved``: attempts whose output may have no space of its own yet.
        ``room(role, n)``: n more outputs of the role fit into the store.
        """
        raised = False
        for role in roles:
            # Space is asked for all that may still want some: granted and not here yet, here without a reservation, and
            # the one to be granted.
            awaited = unreserved.get(role, 0) + 1
            while (free := self._unused(role)) + active.get(role, 0) < SLOTS and room(role, free + awaited):
                self._limits[role] = max(self._limits.get(role, 0), self._received[role]) + 1
                raised = True
        return raised

    def spent(self, roles: Iterable[Role], active: Mapping[Role, int]) -> tuple[Role, ...]:
        """Of ``roles``, those that may get no more work and have none: after ``raise_limits``, for want of room."""
        return tuple(role for role in roles if not self._unused(role) and not active.get(role, 0))

    def _unused(self, role: Role) -> int:
        return max(0, self._limits.get(role, 0) - self._received[role])
