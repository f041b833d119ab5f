"""What starting a server takes, from the order to its introduction with roles held: assumed, then measured."""

from __future__ import annotations

from collections import deque

MEMORY = 16
PRIOR = 2
"""Starts that the assumption counts as."""


class ColdStarts:
    """Of one pool, in seconds."""

    def __init__(self, prior: float):
        self._prior = prior
        self._measured: deque[float] = deque(maxlen=MEMORY)

    def measured(self, seconds: float) -> None:
        self._measured.append(seconds)

    def usual(self) -> float:
        """Mean; while few were measured, the assumption counts."""
        known = sum(self._measured)
        weight = PRIOR if len(self._measured) < MEMORY else 0
        return (known + weight * self._prior) / (len(self._measured) + weight)

    def safe(self) -> float:
        """What four in five take at most."""
        if len(self._measured) < 2 * PRIOR:
            return max(self.usual(), *self._measured, 0.0)
        ordered = sorted(self._measured)
        return ordered[min(len(ordered) - 1, int(0.8 * len(ordered)))]
