"""docs/results/scheduling.md: the goal table first, then each experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.scheduling.results import COMMAND, Report, Row, table

HEAD = ("#", "measure", "case", "value [95 % interval]", "goal", "")

INTRODUCTION = f"""# Results of the scenario suite

Written by `{COMMAND}`, never by hand. Engine: the simulator, which drives the real scheduler in virtual time.
Role plans are solved for demands rounded to 2.5 % and speeds rounded to 5 %, so that they can be reused.

Every figure is a mean over paired seeds (the same arrivals and the same noise for all policies) with its 95 % bootstrap
interval. A goal is met when the end of the interval on its bad side meets it; that end is the `value` in
[scheduling.json](scheduling.json). Goals that are not met stay here.
"""


def write_markdown(path: Path, reports: Sequence[Report], pictures: dict[str, str]) -> None:
    """``pictures``: title of a report → file name of its plot."""
    rows = sorted((row for report in reports for row in report.rows), key=lambda row: row.id)
    unmet = [row for row in rows if not row.is_met]
    parts = [
        INTRODUCTION,
        f"**{len(rows) - len(unmet)} of {len(rows)} measurements meet their goals.**",
        "## Goals",
        goals(rows),
    ]
    for report in reports:
        parts += [f"## {report.title}"]
        if report.title in pictures:
            parts.append(f"![{report.title}]({pictures[report.title]})")
        parts += report.text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def goals(rows: Sequence[Row]) -> str:
    return table(HEAD, [row.cells() for row in rows])
