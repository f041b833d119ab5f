"""Means over seeds, goals and the files that keep them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scheduling.results import Goal, Row, write_json
from benchmarks.scheduling.statistics import Estimate, estimate, ratio


def test_interval_holds_the_mean_and_is_the_same_every_time() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found.low < found.value == 2.5 < found.high
    assert found == estimate([1.0, 2.0, 3.0, 4.0])
    assert estimate([3.0]) == Estimate(3.0, 3.0, 3.0, 1)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_ratio_pairs_seeds() -> None:
    assert ratio([1.0, 10.0], [2.0, 20.0]).value == 0.5
    with pytest.raises(ValueError, match="paired"):
        ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("goal", "worst", "is_met"),
    [
        (Goal("<=", 1.05), 1.1, False),
        (Goal("<=", 1.1), 1.1, True),
        (Goal(">=", 0.9), 0.9, True),
        (Goal("<", 1.1), 1.1, False),
        (Goal("==", 1.0), 1.1, False),
    ],
)
def test_the_bad_end_of_the_interval_must_meet_the_goal(goal: Goal, worst: float, is_met: bool) -> None:
    row = Row(3, "mean", "case", Estimate(1.0, 0.9, 1.1, 20), "", goal)
    assert row.worst == worst
    assert row.is_met is is_met


def test_rows_of_one_engine_leave_the_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "scheduling.json"
    one = Estimate(0.5, 0.4, 0.6, 20)
    write_json(path, [Row(13, "live", "w2", one, "", Goal("<=", 1), engine="emulated", command="live")], "emulated")
    write_json(path, [Row(1, "old", "a", one, "", Goal(">=", 0.97))], "simulator")
    write_json(path, [Row(2, "new", "a", one, "", Goal(">=", 0.3))], "simulator")
    rows = json.loads(path.read_text())
    assert [(row["id"], row["engine"]) for row in rows] == [(2, "simulator"), (13, "emulated")]
    assert rows[0] == {
        "id": 2,
        "measure": "new",
        "case": "a",
        "value": 0.4,
        "unit": "",
        "goal": {"op": ">=", "value": 0.3},
        "engine": "simulator",
        "command": "python -m benchmarks.scheduling",
        "seeds": 20,
    }
