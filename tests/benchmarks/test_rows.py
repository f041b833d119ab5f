"""What is written of rows, and kept when only some are measured anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import pipeline
from benchmarks.rows import Goal, Row, read, row_of

LATENCY = Row(6, "latency", "one at a time", 3.5, "bare handlers", Goal("<=", 3.0), "emulated", "python -m x", (1, 2))


def test_a_record_has_the_fields_that_readers_of_the_file_know_and_comes_back() -> None:
    assert LATENCY.record() == {
        "id": 6,
        "measure": "latency",
        "case": "one at a time",
        "value": 3.5,
        "unit": "bare handlers",
        "goal": {"op": "<=", "value": 3.0},
        "engine": "emulated",
        "command": "python -m x",
        "seeds": [1, 2],
    }
    assert row_of(json.loads(json.dumps(LATENCY.record()))) == LATENCY


@pytest.mark.parametrize(("op", "value", "met"), [("<=", 3.0, True), ("<", 3.0, False), (">=", 3.1, False)])
def test_a_goal_is_met_or_not(op: str, value: float, met: bool) -> None:
    row = replace(LATENCY, value=3.0, goal=Goal(op, value))
    assert row.is_met is met


def test_rows_without_a_goal_are_neither_met_nor_unmet() -> None:
    beside = replace(LATENCY, goal=None)
    assert beside.is_met is None
    assert row_of(beside.record()) == beside


def test_rows_measured_anew_replace_their_own_alone(tmp_path: Path) -> None:
    start = replace(LATENCY, id="start-up", goal=None)
    idle = replace(LATENCY, id=1, value=0.1)
    pipeline.keep(tmp_path, [LATENCY, start, replace(LATENCY, case="32 at a time")])
    pipeline.keep(tmp_path, [idle])
    pipeline.keep(tmp_path, [replace(LATENCY, value=2.0)])
    assert read(tmp_path / "pipeline.json") == [idle, replace(LATENCY, value=2.0), start]


def test_unmet_goals_stay_in_the_tables(tmp_path: Path) -> None:
    pipeline.keep(tmp_path, [LATENCY, replace(LATENCY, id=7, value=1.0)])
    text = (tmp_path / "pipeline.md").read_text()
    assert "**1 of 2 figures with a goal meet it.**" in text
    assert "| 6 | latency | one at a time | 3.5 bare handlers | <= 3 | **not met** | emulated |" in text
    assert "| 6 | `python -m x` |" in text


def test_points_of_a_curve_are_drawn(tmp_path: Path) -> None:
    points = [replace(LATENCY, id=9, case=f"a swap per request at {x} s of weights") for x in (1, 10)]
    pipeline.keep(tmp_path, points)
    assert (tmp_path / "pipeline-9.png").stat().st_size > 0
    assert "![pipeline-9.png](pipeline-9.png)" in (tmp_path / "pipeline.md").read_text()
