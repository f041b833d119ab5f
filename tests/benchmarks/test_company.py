"""How the highest rate is found: on a grid, and with as few requests as decide it."""

from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks.company import _is_in_time
from benchmarks.highest import highest


@pytest.mark.parametrize("limit", [0.05, 0.9, 1.0, 1.04, 7.0])
def test_the_highest_that_is_in_time_is_less_than_a_step_below_the_limit(limit: float) -> None:
    found = highest(lambda rate: rate <= limit, 1.0, grid=1.1, stride=3)
    assert limit / 1.1 < found <= limit


def test_a_service_that_is_never_in_time_does_not_keep_the_search_going() -> None:
    with pytest.raises(ValueError, match="not in time even at"):
        highest(lambda _: False, 1.0)


class Load:
    """Of fifty requests so many are late, seed by seed."""

    def __init__(self, *late: int) -> None:
        self._late = list(late)

    def seconds(self, options: tuple[str, ...]) -> dict[str, float]:
        assert options[-2:] == ("--slo", "1.0")
        return {"p99": 1.0, "in time": 1 - self._late.pop(0) / 50}

    @property
    def left(self) -> int:
        return len(self._late)


@pytest.mark.parametrize(
    ("late", "is_in_time", "left"),
    [((0, 1), True, 0), ((1, 0), True, 0), ((1, 1), False, 0), ((2, 0), False, 1)],
)
def test_all_seeds_count_together_and_no_more_are_run_than_decide(
    late: tuple[int, ...], is_in_time: bool, left: int
) -> None:
    load = Load(*late)
    args = Namespace(requests=50, seeds=2, late=0.01)
    assert _is_in_time(load, 1.0, args, 0.8) is is_in_time  # type: ignore[arg-type]
    assert load.left == left
