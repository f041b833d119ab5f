"""What the matrix came to, as a table for people: on the terminal and in ``docs/results/clients.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.client_matrix.cases import CASES
from tests.client_matrix.environments import Client


class Verdict(StrEnum):
    OK = "✓"
    FAILED = "✗"
    CANNOT = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One client: a cell per case, or why it is not installed."""

    client: Client
    cells: Mapping[str, Cell]
    not_installed: str = ""

    def having(self, verdict: Verdict) -> dict[str, str]:
        return {name: cell.reason for name, cell in self.cells.items() if cell.verdict is verdict}


def failures(columns: Iterable[Column]) -> list[str]:
    return [
        f"{column.client.name}, {name}: {reason}"
        for column in columns
        for name, reason in column.having(Verdict.FAILED).items()
    ]


def summary(columns: Sequence[Column]) -> str:
    counts = {verdict: sum(len(column.having(verdict)) for column in columns) for verdict in Verdict}
    absent = [
        f"{column.client.name} is not installed: {column.not_installed}" for column in columns if column.not_installed
    ]
    words = {Verdict.OK: "passed", Verdict.FAILED: "failed", Verdict.CANNOT: "that the client cannot express"}
    told = ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items())
    return "\n".join([told, *absent])


def grid(columns: Sequence[Column]) -> str:
    """A row per case. Clients that are not installed have empty columns."""
    titles = [case.title for case in CASES]
    width = max(map(len, titles))
    names = [column.client.name for column in columns]
    lines = [f"| {'':{width}} | {' | '.join(names)} |", f"|{'-' * (width + 2)}|{'|'.join(':-:' for _ in names)}|"]
    for case in CASES:
        marks = [column.cells[case.name].verdict if case.name in column.cells else "" for column in columns]
        cells = " | ".join(f"{mark:^{len(name)}}" for mark, name in zip(marks, names, strict=True))
        lines.append(f"| {case.title:{width}} | {cells} |")
    return "\n".join(lines)


def page(columns: Sequence[Column]) -> str:
    """The whole of ``docs/results/clients.md``."""
    versions = [f"| {column.client.name} | {column.client.versions or 'raw requests'} |" for column in columns]
    failed = [f"- {line}" for line in failures(columns)]
    cannot = [
        f"| {column.client.name} | {_grouped(reasons)} |"
        for column in columns
        if (reasons := column.having(Verdict.CANNOT))
    ]
    sections = [
        "# Clients",
        "Written by `make test-clients`: the clients of `tests/client_matrix/clients.toml`, run against a gateway\n"
        "with real stage servers and the bundled model; edits of two pictures go to a model of random weights: the\n"
        "bundled one edits one. ✓ passed, ✗ failed, – the client cannot express it.",
        grid(columns),
        summary(columns) + ".",
        *(["## Failed", "\n".join(failed)] if failed else []),
        "## Versions",
        "\n".join(["| client | packages |", "|---|---|", *versions]),
        "## What a client cannot express",
        "\n".join(["| client | |", "|---|---|", *cannot]),
    ]
    return "\n\n".join(sections) + "\n"


def _grouped(reasons: Mapping[str, str]) -> str:
    titles = {case.name: case.title for case in CASES}
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault(reason, []).append(titles[name])
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in grouped.items())
