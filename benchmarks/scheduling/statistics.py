"""Means over paired seeds, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95

Array = NDArray[np.float64]


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
    data = _checked(values)
    return _interval(float(data.mean()), data[_picks(len(data))].mean(axis=1), len(data))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Of the means over all seeds; seeds are resampled in pairs."""
    a, b = _checked(ours), _checked(theirs)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    picks = _picks(len(a))
    return _interval(float(a.mean() / b.mean()), a[picks].mean(axis=1) / b[picks].mean(axis=1), len(a))


def _checked(values: Sequence[float]) -> Array:
    if not values:
        raise ValueError("no values to estimate a mean of")
    return np.asarray(values, dtype=float)


def _picks(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def _interval(value: float, resampled: Array, seeds: int) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), seeds)
