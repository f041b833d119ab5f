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
the JSON file beside this one. Goals that are not met stay here.
"""

NOTES = {
    3: "What is lost is the time to notice a shift (arrivals until the mix has clearly changed) and needless moves; "
    "the oracle has neither. The lower bound shows how much of the rest is the price of switching at all. For p99 the "
    "oracle may take the order of arrival, which delays no large request for smaller ones and loses in the mean; "
    "*oracle, same order* is the one whose roles alone differ from ours.",
    4: "Where the oracle itself is hardly better than a baseline there is little to win; a table says how much. "
    "*Predict only* has our solver, our role sets and our gate behind its moving average.",
    5: "The table of orders shows the least mean that an order by size can give on these arrivals: *pure shortest "
    "first*.",
    6: "In some seeds chance makes the mix of a phase another than defined for a minute or more, one for which the "
    "roles as they are are best; a second table counts from the mix that arrived.",
    7: "In a mixture, many arrivals of one kind in a row look like another mix until the next ones come.",
    11: "Processor time on this machine; a p99 taken while others use its cores is higher than on a quiet one.",
}
"""What explains the gap where a goal is not met."""


def write_markdown(path: Path, reports: Sequence[Report], pictures: dict[str, str]) -> None:
    """``pictures``: title of a report → file name of its plot."""
    rows = sorted((row for report in reports for row in report.rows), key=lambda row: row.id)
    unmet = [row for row in rows if not row.is_met]
    parts = [
        INTRODUCTION,
        f"**{len(rows) - len(unmet)} of {len(rows)} measurements meet their goals**, with {_seeds(rows)} seeds.",
        "## Goals",
        goals(rows),
    ]
    notes = [f"- Row {number}: {NOTES[number]}" for number in sorted({row.id for row in unmet} & NOTES.keys())]
    if notes:
        parts += ["What explains the gaps:", "\n".join(notes)]
    for report in reports:
        parts += [f"## {report.title}"]
        if report.title in pictures:
            parts.append(f"![{report.title}]({pictures[report.title]})")
        parts += report.text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({row.estimate.seeds for row in rows})
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))


def goals(rows: Sequence[Row]) -> str:
    return table(HEAD, [row.cells() for row in rows])
