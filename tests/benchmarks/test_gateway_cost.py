"""What the benchmark of the gateway's cost says of its figures; the figures are for people to look at."""

from __future__ import annotations

import pytest

from benchmarks import gateway_cost
from benchmarks.http_load import quantile


def test_rows_of_other_benchmarks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gateway_cost.main(["--only", "5,8"])
    assert "'8' is no row of this benchmark; 5, 6, 7 are" in capsys.readouterr().err


@pytest.mark.parametrize(("q", "value"), [(0.5, 51), (0.99, 100), (1.0, 100)])
def test_quantiles(q: float, value: float) -> None:
    assert quantile(range(100, 0, -1), q) == value
