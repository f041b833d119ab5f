import numpy as np
import pytest
from scipy.optimize import nnls as reference

from scheduler.cost.least_squares import nnls


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_finds_what_scipy_finds(columns: int) -> None:
    chance = np.random.default_rng(columns)
    bound = 0
    for _ in range(300):
        rows = chance.standard_normal((chance.integers(columns + 2, 30), columns))
        targets = chance.standard_normal(len(rows))
        expected, _ = reference(rows, targets)
        bound += int((expected == 0).any())
        assert nnls(rows, targets) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert bound > 100  # coefficients that would be negative were among them


def test_powers_of_the_size_are_told_apart() -> None:
    tokens = np.linspace(0.1, 1.0, 20)
    rows = np.stack([tokens**0, tokens, tokens**2], axis=1)
    assert nnls(rows, rows @ [0.3, 0.0, 2.0]) == pytest.approx([0.3, 0.0, 2.0], abs=1e-7)


@pytest.mark.parametrize(
    "second", [np.zeros(4), np.arange(1.0, 5.0), -np.arange(1.0, 5.0)], ids=["zero", "same", "opposite"]
)
def test_a_column_that_says_nothing_new_is_no_trouble(second: np.ndarray) -> None:
    first = np.arange(1.0, 5.0)
    found = nnls(np.stack([first, second], axis=1), 3 * first)
    assert (found >= 0).all()
    assert found[0] * first + found[1] * second == pytest.approx(3 * first)
