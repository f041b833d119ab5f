"""Whether some servers carry what is predicted: a fluid queue, walked through from now to a horizon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

STEP_SECONDS = 5.0

Capacity = Sequence[tuple[float, float]]
"""(seconds from now, work per second from then on), by rising time and from 0 on."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Of one model. Work is in reference seconds."""

    backlog: float
    """Work that admitted requests still need."""
    rate: Callable[[float, float], float]
    """Work asked for per second, so many seconds from now, and so many standard errors above what is expected."""
    reserve: float
    """Capacity beyond that which chance needs."""
    allowed: float
    """Seconds that a request may wait."""

    def carried(self, capacity: Capacity, since: float, until: float, errors: float) -> bool:
        """Whether nobody who comes from ``since`` to ``until`` (seconds from now) waits longer than is allowed."""
        waiting, at, changes = self.backlog, 0.0, list(capacity)
        speed = changes.pop(0)[1]
        while at <= until:
            while changes and changes[0][0] <= at:
                speed = changes.pop(0)[1]
            if at >= since and waiting > self.allowed * speed:
                return False
            coming = self.rate(at, errors) + self.reserve
            waiting = max(0.0, waiting + (coming - speed) * STEP_SECONDS)
            at += STEP_SECONDS
        return True
