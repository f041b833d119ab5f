"""Coefficients of a cost's form from measured times."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

Row = tuple[float, ...]
"""Features of one measurement, for example (1, N, N²)."""


def fit(rows: Sequence[Row], seconds: Sequence[float]) -> tuple[float, ...]:
    """Coefficients of 0 or more with the least relative error, squared.

    With so few columns the exact way is to solve without bounds for every subset of them: the best solution within the
    bounds is among those.
    """
    relative = np.array(rows, dtype=float) / np.array(seconds, dtype=float)[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1.0  # N² dwarfs 1
    columns = range(relative.shape[1])
    best, least = np.zeros(len(columns)), np.inf
    for some in (list(chosen) for n in range(1, len(columns) + 1) for chosen in combinations(columns, n)):
        solution = np.linalg.lstsq(relative[:, some] / scale[some], np.ones(len(rows)), rcond=None)[0]
        found = np.zeros(len(columns))
        found[some] = solution / scale[some]
        error = float(np.sum((relative @ found - 1) ** 2))
        if (solution >= 0).all() and error < least:
            best, least = found, error
    return tuple(float(c) for c in best)


def errors(rows: Sequence[Row], seconds: Sequence[float], coefficients: Row) -> tuple[float, float]:
    """Mean and largest relative error of the fit, 0.1 meaning 10 %."""
    predicted = np.array(rows, dtype=float) @ np.array(coefficients)
    relative = np.abs(predicted / np.array(seconds, dtype=float) - 1)
    return float(relative.mean()), float(relative.max())
