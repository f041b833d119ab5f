"""What a further job adds where equal ones compute together: c(b) = c(1) · (1 + m · (b − 1)), m by number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from scheduler.sharing import stretch

PRIOR_WEIGHT = 2.0
MEMORY = 32.0
LARGEST = 3.0
"""Company that costs more than this per head was disturbed by something else."""
FADING = 0.97
"""Of what is known, per job alone, where it says that company does not pay: so it is tried again one day."""
WELL_KNOWN = 8.0
"""Observations, in further jobs, after which a marginal cost is no guess any more."""


class BatchMarginal:
    def __init__(self, points: Sequence[tuple[float, float]]):
        """``points``: image tokens by rising number → m; linear between, flat outside."""
        self._points = tuple(points)
        self._learned: dict[int, tuple[float, float]] = {}
        """Power of two of the tokens → summed weight and mean of observed m."""

    def marginal(self, tokens: int) -> float:
        """Cost of one further job, in jobs."""
        prior = interpolate(self._points, tokens)
        weight, mean = self._learned.get(tokens.bit_length(), (0.0, 0.0))
        return (PRIOR_WEIGHT * prior + weight * mean) / (PRIOR_WEIGHT + weight)

    def factor(self, tokens: int, batch: float) -> float:
        """Cost of all ``batch`` together, in jobs."""
        return 1.0 if batch == 1 else stretch(batch, self.marginal(tokens))

    def is_well_known(self, tokens: int) -> bool:
        return self._learned.get(tokens.bit_length(), (0.0, 0.0))[0] >= WELL_KNOWN

    def observe(self, tokens: int, batch: float, jobs: float) -> None:
        """``batch`` together, more than one in the mean, cost as much as ``jobs`` single jobs."""
        others = batch - 1
        marginal = max(0.0, min(LARGEST, (jobs - 1.0) / others))
        weight = others * min(1.0, others)  # the shorter the company, the larger the error of what is told of it
        bucket = tokens.bit_length()
        total, mean = self._learned.get(bucket, (0.0, 0.0))
        total = min(total + weight, max(MEMORY, weight))
        self._learned[bucket] = (total, mean + (marginal - mean) * weight / total)

    def was_alone(self, tokens: int) -> None:
        """Where nobody computes together because it would not pay, nothing else tells when it does again."""
        bucket = tokens.bit_length()
        if bucket in self._learned and self.marginal(tokens) >= 1:
            total, mean = self._learned[bucket]
            self._learned[bucket] = (FADING * total, mean)


def interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear between the points, flat outside."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
