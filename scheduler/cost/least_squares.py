"""Least squares without negative coefficients, for the few columns that a stage's cost has.

SciPy's ``nnls`` takes most of a second to import, in a gateway that serves already and in the middle of a decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DEPENDENT = 1e-12
"""Of a column's length, squared: what is left of it beside the others is rounding, and it adds nothing to them."""
ROUNDING = 1e-14
"""Of the steepest slope at 0: a slope below it is none."""

Matrix = Sequence[Sequence[float]]


def nnls(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The x ≥ 0 with the smallest ‖rows · x − targets‖, to some eight digits.

    ``rows`` is (observations, columns), the columns of about the same length; ``targets`` is (observations,).
    """
    products: Matrix = (rows.T @ rows).tolist()
    aims: list[float] = (rows.T @ targets).tolist()
    free = _solve(products, aims, range(len(aims)))  # as a rule, the answer
    return np.array(free if min(free) > 0.0 else _active_sets(products, aims))


def _active_sets(products: Matrix, aims: Sequence[float]) -> list[float]:
    """After Lawson and Hanson (1974): one column more may be above zero as long as that helps."""
    none = ROUNDING * max(map(abs, aims))
    solution = [0.0] * len(aims)
    free: list[int] = []
    for _ in range(3 * len(aims)):  # each turn lowers the residual, so no set of columns comes twice
        slopes = [
            0.0 if k in free else aim - sum(p * x for p, x in zip(products[k], solution, strict=True))
            for k, aim in enumerate(aims)
        ]
        steepest = max(range(len(aims)), key=slopes.__getitem__)
        if slopes[steepest] <= none:
            break
        solution, free = _settle(products, aims, solution, [*free, steepest])
    return solution


def _settle(
    products: Matrix, aims: Sequence[float], solution: list[float], free: list[int]
) -> tuple[list[float], list[int]]:
    """From ``solution`` to the best one over ``free``, less those of it that would fall below zero on the way."""
    while True:
        best = _solve(products, aims, free)
        falling = [k for k in free if best[k] <= 0.0]
        if not falling:
            return best, free
        # As far towards it as the first of them allows, which is then zero and no longer free.
        step, first = min((solution[k] / (solution[k] - best[k]) if solution[k] > 0.0 else 0.0, k) for k in falling)
        solution = [x + step * (b - x) for x, b in zip(solution, best, strict=True)]
        solution[first] = 0.0
        free = [k for k in free if k != first]


def _solve(products: Matrix, aims: Sequence[float], free: Sequence[int]) -> list[float]:
    """The least squares over the columns ``free``, whatever their sign; the others, and dependent ones, are 0."""
    matrix = [[products[i][j] for j in free] for i in free]
    right = [aims[i] for i in free]
    for k in range(len(free)):  # no pivots: products of columns are positive definite
        if matrix[k][k] <= DEPENDENT * products[free[k]][free[k]]:
            matrix[k], right[k] = [float(j == k) for j in range(len(free))], 0.0
        for i in range(k + 1, len(free)):
            factor = matrix[i][k] / matrix[k][k]
            for j in range(k + 1, len(free)):
                matrix[i][j] -= factor * matrix[k][j]
            right[i] -= factor * right[k]
    found = [0.0] * len(aims)
    for k in reversed(range(len(free))):
        rest = sum(matrix[k][j] * found[free[j]] for j in range(k + 1, len(free)))
        found[free[k]] = (right[k] - rest) / matrix[k][k]
    return found
