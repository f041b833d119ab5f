"""What a further member adds to a batch: c(b) = c(1) · (1 + m · (b − 1)), with m by number of image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

PRIOR_WEIGHT = 2.0
MEMORY = 32.0
LARGEST = 3.0
"""A batch that costs more than this per member was disturbed by something else."""


class BatchMarginal:
    def __init__(self, points: Sequence[tuple[float, float]]):
        """``points``: image tokens by rising number → m; linear between, flat outside."""
        self._points = tuple(points)
        self._learned: dict[int, tuple[float, float]] = {}
        """Power of two of the tokens → summed weight and mean of observed m."""

    def marginal(self, tokens: int) -> float:
        """Cost of one further member, in jobs."""
        prior = interpolate(self._points, tokens)
        weight, mean = self._learned.get(tokens.bit_length(), (0.0, 0.0))
        return (PRIOR_WEIGHT * prior + weight * mean) / (PRIOR_WEIGHT + weight)

    def factor(self, tokens: int, batch: int) -> float:
        """Cost of the whole batch, in jobs."""
        return 1.0 if batch == 1 else 1.0 + self.marginal(tokens) * (batch - 1)

    def observe(self, tokens: int, batch: int, jobs: float) -> None:
        """A batch of two or more cost as much as ``jobs`` single jobs."""
        marginal = max(0.0, min(LARGEST, (jobs - 1.0) / (batch - 1)))
        bucket = tokens.bit_length()
        weight, mean = self._learned.get(bucket, (0.0, 0.0))
        weight = min(weight + batch - 1, MEMORY)
        self._learned[bucket] = (weight, mean + (marginal - mean) * (batch - 1) / weight)


def interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear between the points, flat outside."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
