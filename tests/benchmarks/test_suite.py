"""Experiments: from runs to rows and files, with figures made up."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.scheduling import live
from benchmarks.scheduling.__main__ import EXPERIMENTS
from benchmarks.scheduling.tasks import Effort, Figures, Results, run_all
from benchmarks.scheduling.writing import write_markdown
from scheduler.cost.profile import load
from scheduler.sim.suite import bundled_profile
from wire.types import REQUIRED


class Ones(defaultdict[str, float]):
    """Any figure is 1."""

    def __init__(self) -> None:
        super().__init__(lambda: 1.0, {"slowdown 512x512/20": 1.0})


def made_up(name: str) -> Results:
    results = Results()
    for task in EXPERIMENTS[name].tasks(Effort(2, quick=True)):
        function = f"{task.function.__module__}.{task.function.__qualname__}"
        results.add(function, task.key, task.seed, Ones())
    return results


def test_every_row_of_the_table_is_covered() -> None:
    rows = [row for name, module in EXPERIMENTS.items() for row in module.report(made_up(name)).rows]
    assert {row.id for row in rows} == {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16}  # 13 is live's
    assert {row.estimate.seeds for row in rows} == {2}


def test_markdown_shows_what_is_not_met(tmp_path: Path) -> None:
    report = EXPERIMENTS["stillness"].report(made_up("stillness"))
    write_markdown(tmp_path / "results.md", [report], {report.title: "stillness.png"})
    text = (tmp_path / "results.md").read_text()
    assert "**not met**" in text
    assert "![Roles hold still](stillness.png)" in text


def figures(key: str, seed: int, quick: bool) -> Figures:
    return {"sum": seed + len(key) + quick}


def test_runs_in_other_processes_can_be_kept(tmp_path: Path) -> None:
    results = run_all(Effort(2, quick=True).tasks(figures, [("ab",), ("c",)]), processes=1)
    results.save(tmp_path / "runs.jsonl")
    kept = Results()
    kept.load(tmp_path / "runs.jsonl")
    assert kept.values(figures, "ab", figure="sum") == results.values(figures, "ab", figure="sum") == [4, 5]


def test_live_profile_is_ten_times_faster(tmp_path: Path) -> None:
    fast, slow = load(live.fast_profile(tmp_path)), bundled_profile("qwen-image-4090-offload")
    for role in REQUIRED:
        assert fast.roles[role].coefficients == pytest.approx([c / 10 for c in slow.roles[role].coefficients])
        assert fast.roles[role].load_seconds == pytest.approx(slow.roles[role].load_seconds / 10)
    whole = live.scenario(fast, 200)
    assert 150 < len(whole.workload.trace) < 250
    assert all(len(server.roles) == 1 for server in whole.servers)
