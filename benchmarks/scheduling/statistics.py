"""Means over paired seeds, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Percentile bootstrap over the seeds, one value each; resampling is the same every time."""
    data = np.asarray(values, dtype=float)
    if not len(data):
        raise ValueError("no values to estimate a mean of")
    picks = np.random.default_rng(0).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.quantile(data[picks].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(data.mean()), float(low), float(high), len(data))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Of paired seeds: the mean of each seed's ratio."""
    return estimate([a / b for a, b in zip(ours, theirs, strict=True)])
