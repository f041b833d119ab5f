"""How wrong predictions are: quantiles of recent log ratios observed / predicted."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil, exp
from statistics import NormalDist

WINDOW = 256
SEEDS = 24
"""Assumed residuals at the start; each observation replaces one of them."""


class ResidualTracker:
    def __init__(self, sigma: float):
        """``sigma``: assumed standard deviation of the log ratio before anything is observed."""
        normal = NormalDist(0.0, sigma)
        seeds = [normal.inv_cdf((i + 0.5) / SEEDS) for i in range(SEEDS)]
        self._sorted = seeds
        # Popped from both ends inwards: what is left stays symmetric, and a wide guess is soon forgotten.
        self._seeds = sorted(seeds, key=abs)
        self._recent: deque[float] = deque()

    def add(self, log_ratio: float) -> None:
        if self._seeds:
            self._drop(self._seeds.pop())
        elif len(self._recent) == WINDOW:
            self._drop(self._recent.popleft())
        self._recent.append(log_ratio)
        insort(self._sorted, log_ratio)

    @property
    def observations(self) -> int:
        """Those remembered."""
        return len(self._recent)

    def quantile(self, q: float) -> float:
        """Factor on a prediction that the observed time stays under with probability ``q`` (between 0 and 1)."""
        if not 0 < q < 1:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        # The rank of split conformal prediction: calibrated for few residuals too, as far as they reach.
        rank = min(len(self._sorted), ceil(q * (len(self._sorted) + 1)))
        return exp(self._sorted[max(0, rank - 1)])

    def _drop(self, value: float) -> None:
        del self._sorted[bisect_left(self._sorted, value)]
