"""Coefficients of one stage on one kind of server, from a prior and from what was observed.

Non-negative least squares on the relative error. Observations of equal jobs are gathered in one cell, so a popular size
cannot push the others out of the bounded memory, and noise averages out before the fit. The prior enters as weak
pseudo-observations whose level follows the observations: a profile of another device gives the shape, a handful of
observations the level, and more of them the shape too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np

from scheduler.cost.features import Row
from scheduler.cost.least_squares import nnls

MAX_CELLS = 48
CELL_MEMORY = 32
"""A cell's mean forgets older observations than about this many."""
SHAPE_WEIGHT = 0.2
"""Weight of all pseudo-observations together, in observations."""
KERNEL_WIDTH = 0.25
"""In log seconds: observed residuals correct predictions of about the same cost, where the form itself is off."""
KERNEL_PRIOR = 2.0
"""Observations that a local correction takes to reach two thirds of its size, roughly."""


@dataclass(slots=True)
class Cell:
    """Observations of equal jobs."""

    mean: float
    """Of log seconds per pass."""
    count: float = 1.0

    def add(self, value: float) -> None:
        self.count += 1.0
        self.mean += (value - self.mean) / min(self.count, CELL_MEMORY)


class StageFit:
    """Seconds of one pass as a function of a feature row."""

    def __init__(self, prior: Sequence[float], anchors: Sequence[Row], level_weight: float):
        """``level_weight``: observations that the prior's level is worth; its shape is always weak."""
        self._prior = np.asarray(prior, dtype=float)
        self._anchors = np.asarray(anchors, dtype=float)
        self._level_weight = level_weight
        self._cells: OrderedDict[Row, Cell] = OrderedDict()
        self._seen = 0
        self._fitted_at = 0
        self.level = 1.0
        """How many times the prior's seconds the observations are."""
        self._coefficients = tuple(map(float, prior))
        self._kernel: list[tuple[float, float, float]] = []
        """Per cell: log seconds fitted, residual, weight."""

    @property
    def observations(self) -> int:
        return self._seen

    @property
    def coefficients(self) -> tuple[float, ...]:
        return self._coefficients

    def cell(self, row: Row) -> Cell | None:
        return self._cells.get(row)

    def observe(self, row: Row, seconds: float) -> None:
        """One pass of ``row`` took ``seconds`` (above 0) on a server of usual speed."""
        cell = self._cells.get(row)
        if cell is None:
            self._cells[row] = Cell(log(seconds))
            if len(self._cells) > MAX_CELLS:
                self._cells.popitem(last=False)
        else:
            cell.add(log(seconds))
            self._cells.move_to_end(row)
        self._seen += 1

    def refit_if_due(self) -> bool:
        """Fit anew after each of the first observations, later after every eighth. True when something changed."""
        if self._seen - self._fitted_at < (1 if self._seen <= 32 else 8):
            return False
        self._refit()
        self._fitted_at = self._seen
        return True

    def seconds(self, row: Row) -> float:
        """Of one pass."""
        fitted = self._form(row)
        return fitted * exp(self._correction(log(fitted)))

    def _form(self, row: Row) -> float:
        return max(1e-9, sum(x * c for x, c in zip(row, self._coefficients, strict=True)))

    def _correction(self, at: float) -> float:
        total, weights = 0.0, KERNEL_PRIOR
        for place, residual, weight in self._kernel:
            near = weight * exp(-(((at - place) / KERNEL_WIDTH) ** 2) / 2)
            total += near * residual
            weights += near
        return total / weights

    def _refit(self) -> None:
        rows = np.array(list(self._cells), dtype=float)
        counts = np.array([min(cell.count, CELL_MEMORY) for cell in self._cells.values()])
        logs = np.array([cell.mean for cell in self._cells.values()])
        shift = logs - np.log(np.maximum(rows @ self._prior, 1e-9))
        self.level = exp(float(counts @ shift) / (float(counts.sum()) + self._level_weight))
        weight = sqrt(SHAPE_WEIGHT / len(self._anchors))
        pseudo = self._anchors * (weight / (self.level * np.maximum(self._anchors @ self._prior, 1e-9)))[:, None]
        observed = rows * (np.sqrt(counts) / np.exp(logs))[:, None]
        targets = np.concatenate([np.sqrt(counts), np.full(len(pseudo), weight)])
        self._coefficients = tuple(_relative_nnls(np.vstack([observed, pseudo]), targets).tolist())
        fitted = [log(self._form(row)) for row in self._cells]
        self._kernel = [(f, float(y - f), float(n)) for f, y, n in zip(fitted, logs, counts, strict=True)]


def _relative_nnls(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Least squares without negative coefficients; columns are scaled, since N² dwarfs 1."""
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1.0
    return np.asarray(nnls(rows / scale, targets) / scale)
