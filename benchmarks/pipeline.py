"""The files that ``python -m benchmarks`` writes: pipeline.json, pipeline.md, and plots where rows make a curve."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows as kept
from benchmarks.rows import Row
from benchmarks.scheduling.results import table

NAME = "pipeline"
HEAD = ("#", "measure", "case", "value", "goal", "", "engine")
INTRODUCTION = """# The pipeline's own cost

Written by `python -m benchmarks`, never by hand; rows by their numbers in `benchmarks/__main__.py`. Goals that are not
met stay here. *Emulated* devices wait for as long as a published profile says instead of computing, while processes,
sockets and HTTP are real; *simulated* rows are virtual time around the real scheduler; *none*: no device takes part.
What the figures mean: [performance.md](../performance.md).
"""
CURVE = re.compile(r"^(?P<line>.+) at (?P<x>[0-9.e+-]+) s of weights$")
"""Cases of rows that are points of a curve."""


def keep(folder: Path, found: Sequence[Row]) -> None:
    """Put rows in the place of those with their ids, and write all files anew."""
    path = folder / f"{NAME}.json"
    anew = {row.id for row in found}
    rows = sorted([*(row for row in kept.read(path) if row.id not in anew), *found], key=kept.order)
    kept.write(path, rows)
    plots = _curves(folder, rows)
    (folder / f"{NAME}.md").write_text(_markdown(rows, plots), encoding="utf-8")


def _markdown(rows: Sequence[Row], plots: Sequence[str]) -> str:
    asked = [row for row in rows if row.goal is not None]
    met = sum(bool(row.is_met) for row in asked)
    machine = (
        f"{os.cpu_count()} cores; load average {os.getloadavg()[1]:.1f} over five minutes when the file was written"
    )
    parts = [
        INTRODUCTION,
        f"**{met} of {len(asked)} figures with a goal meet it.** {machine}.",
        table(HEAD, [_cells(row) for row in rows]),
        *(f"![{plot}]({plot})" for plot in plots),
        "## How to repeat them",
        table(("#", "command"), _commands(rows)),
    ]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    state = {None: "", True: "met", False: "**not met**"}[row.is_met]
    value = f"{row.value:.4g} {row.unit}".strip()
    return (str(row.id), row.measure, row.case, value, str(row.goal or ""), state, row.engine)


def _commands(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((str(row.id), f"`{row.command}`") for row in rows))


def _curves(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Names of the plots written: one for each measure that has points of a curve."""
    curves: dict[int | str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if point := CURVE.match(row.case):
            curves.setdefault(row.id, {}).setdefault(point["line"], []).append((float(point["x"]), row.value))
    if curves:
        from benchmarks.curves import draw  # matplotlib takes seconds to import

        for number, lines in curves.items():
            draw(lines, folder / f"{NAME}-{number}.png")
    return [f"{NAME}-{number}.png" for number in curves]
