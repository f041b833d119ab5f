"""Rows: what a benchmark measured, beside its goal. Benchmarks write them themselves; unmet goals stay in the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Op = Literal["<=", ">=", "<", "=="]


@dataclass(frozen=True, slots=True)
class Goal:
    op: Op
    value: float

    def holds(self, value: float) -> bool:
        return {
            "<=": value <= self.value,
            ">=": value >= self.value,
            "<": value < self.value,
            "==": value == self.value,
        }[self.op]

    def __str__(self) -> str:
        return f"{self.op} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``id`` is the row of the goal table, or a name where the table has none."""

    id: int | str
    measure: str
    case: str
    value: float
    unit: str
    goal: Goal | None
    """None: reported beside the others, nothing is asked of it."""
    engine: str
    """What stood in for the device: ``emulated``, ``simulated``, ``torch, tiny-shapes``, ``none``."""
    command: str
    seeds: tuple[int, ...] = ()

    @property
    def is_met(self) -> bool | None:
        return None if self.goal is None else self.goal.holds(self.value)

    def record(self) -> dict[str, Any]:
        """As result files have it."""
        return {
            "id": self.id,
            "measure": self.measure,
            "case": self.case,
            "value": float(f"{self.value:.4g}"),
            "unit": self.unit,
            "goal": None if self.goal is None else {"op": self.goal.op, "value": float(f"{self.goal.value:.4g}")},
            "engine": self.engine,
            "command": self.command,
            "seeds": list(self.seeds),
        }

    def __str__(self) -> str:
        told = f"{self.id}  {self.measure}, {self.case}: {self.value:.4g} {self.unit}".rstrip()
        if self.goal is None:
            return told
        return f"{told} (goal: {self.goal.op} {self.goal.value:.3g}, {'met' if self.is_met else 'NOT met'})"


def row_of(record: dict[str, Any]) -> Row:
    """What ``Row.record`` made. Raises ``KeyError`` and ``TypeError`` where a field is missing."""
    goal = record["goal"]
    given = record | {"goal": None if goal is None else Goal(**goal), "seeds": tuple(record["seeds"])}
    return Row(**given)


def show(rows: Iterable[Row]) -> list[Row]:
    """Print them as they come."""
    found = []
    for row in rows:
        print(row, flush=True)
        found.append(row)
    return found


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [row_of(record) for record in json.loads(path.read_text(encoding="utf-8"))]


def write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(f"  {json.dumps(row.record(), ensure_ascii=False)}" for row in rows)
    path.write_text(f"[\n{body}\n]\n", encoding="utf-8")


def order(row: Row) -> tuple[bool, int, str]:
    """Numbers first, as the goal table has them."""
    return (True, 0, row.id) if isinstance(row.id, str) else (False, row.id, "")
