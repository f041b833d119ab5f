"""What dit jobs cost whose steps reuse what earlier ones computed, as a share of those that compute every step."""

from __future__ import annotations

from collections.abc import Mapping

PRIOR_STEPS = 2.0
"""Trust in what a profile says, and without in that nothing is saved, until something was observed."""
MEMORY = 500.0
"""Steps."""
LARGEST = 2.0
"""A share beyond was disturbed by something else."""


class CachedShare:
    """By level."""

    def __init__(self, told: Mapping[str, float]) -> None:
        """``told``: what a profile says; of other levels it says nothing."""
        self._told = told
        self._learned: dict[str, tuple[float, float]] = {}
        """Steps, and mean of the observed share."""

    def share(self, level: str) -> float:
        if not level:
            return 1.0
        steps, mean = self._learned.get(level, (0.0, 1.0))
        return (PRIOR_STEPS * self._told.get(level, 1.0) + steps * mean) / (PRIOR_STEPS + steps)

    def observe(self, level: str, steps: int, share: float) -> None:
        """So many steps, some computed and some not, took ``share`` of what they would have if all were."""
        total, mean = self._learned.get(level, (0.0, 1.0))
        total = min(total + steps, max(MEMORY, steps))
        self._learned[level] = (total, mean + (min(LARGEST, share) - mean) * steps / total)
