"""Rows that say how a measure stands to its goal, and the files they are kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.rows import Goal
from benchmarks.scheduling.statistics import Estimate

COMMAND = "python -m benchmarks.scheduling"


@dataclass(frozen=True, slots=True)
class Row:
    """Like ``benchmarks.rows.Row``, of an estimate. ``id`` is the row of the goal table."""

    id: int
    measure: str
    case: str
    estimate: Estimate
    unit: str
    goal: Goal
    engine: Literal["simulator", "emulated"] = "simulator"
    command: str = COMMAND

    @property
    def worst(self) -> float:
        """The end of the interval on the goal's bad side: a goal holds when this meets it."""
        if self.goal.op == "==":
            return max(self.estimate.low, self.estimate.high, key=lambda end: abs(end - self.goal.value))
        return self.estimate.low if self.goal.op == ">=" else self.estimate.high

    @property
    def is_met(self) -> bool:
        return self.goal.holds(self.worst)

    def record(self) -> dict[str, object]:
        return {
            "id": self.id,
            "measure": self.measure,
            "case": self.case,
            "value": float(f"{self.worst:.6g}"),
            "unit": self.unit,
            "goal": {"op": self.goal.op, "value": self.goal.value},
            "engine": self.engine,
            "command": self.command,
            "seeds": self.estimate.seeds,
        }

    def cells(self) -> tuple[str, ...]:
        kept = "met" if self.is_met else "**not met**"
        return (str(self.id), self.measure, self.case, f"{self.estimate} {self.unit}".strip(), str(self.goal), kept)


@dataclass(slots=True)
class Report:
    """What one experiment has to say."""

    title: str
    rows: list[Row] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    """Markdown paragraphs and tables."""


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, rows: Sequence[Row], engine: str) -> None:
    """Replace the file's rows of one engine, in order of their ids; those of the other engine stay."""
    kept = [row for row in _read(path) if row["engine"] != engine]
    records = sorted([*kept, *(row.record() for row in rows)], key=lambda row: int(str(row["id"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(f"  {json.dumps(record, ensure_ascii=False)}" for record in records)
    path.write_text(f"[\n{body}\n]\n", encoding="utf-8")


def _read(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    found: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return found
