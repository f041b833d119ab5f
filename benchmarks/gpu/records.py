"""What was measured: a JSON line each, on disk at once, and tables written anew after every part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

_WAYS: Sequence[tuple[str, Callable[[Record], str]]] = (
    ("way", lambda r: str(r["way"])),
    ("ms", lambda r: f"{r['seconds'] * 1e3:.1f}"),
)

_LIGHTER: Sequence[tuple[str, Callable[[Record], str]]] = (
    ("way", lambda r: str(r["way"])),
    ("ms per step", lambda r: f"{r['seconds'] * 1e3:.1f}"),
    ("× full weights", lambda r: f"{r['relative']:.2f}"),
    ("on the device, GB", lambda r: f"{_taken(r) / 1e9:.3f}"),
    ("predicted, GB", lambda r: f"{r['predicted_bytes'] / 1e9:.3f}"),
    ("prediction is off by", lambda r: f"{r['predicted_bytes'] / _taken(r) - 1:+.2%}"),
)

_TABLES: Mapping[str, tuple[str, Sequence[tuple[str, Callable[[Record], str]]]]] = {
    "stages": (
        "Stages, one job; of dit jobs one forward pass",
        (("ms", lambda r: f"{r['seconds'] * 1e3:.1f}"), ("peak, GB", lambda r: f"{r['peak_bytes'] / 1e9:.1f}")),
    ),
    "load": ("A role's weights, from host memory to the device", (("s", lambda r: f"{r['seconds']:.2f}"),)),
    "moves": (
        "A role out of host memory, beside those that stay: the device stops for the swap alone (goal: 50 ms)",
        (
            ("s", lambda r: f"{r['seconds']:.2f}"),
            ("of which a tiny job, ms", lambda r: f"{r['warm_up_seconds'] * 1e3:.1f}"),
            ("stop, ms", lambda r: f"{r['stop_seconds'] * 1e3:.1f}"),
        ),
    ),
    "batches": (
        "Batches",
        (
            ("members", lambda r: str(r["members"])),
            ("ms per member", lambda r: f"{r['seconds'] / r['members'] * 1e3:.1f}"),
            ("peak, GB", lambda r: f"{r['peak_bytes'] / 1e9:.1f}"),
        ),
    ),
    "overlap": (
        "Jobs one after another: inputs fetched while the one before computes, or after it has ended",
        (
            ("prefetch", lambda r: "yes" if r["prefetch"] else "no"),
            ("ms per job", lambda r: f"{r['seconds'] / r['jobs'] * 1e3:.1f}"),
            ("of which device", lambda r: f"{r['compute'] / r['jobs'] * 1e3:.1f}"),
            ("fetch", lambda r: f"{r['fetch'] / r['jobs'] * 1e3:.1f}"),
            ("publish", lambda r: f"{r['publish'] / r['jobs'] * 1e3:.1f}"),
        ),
    ),
    "step_caches": ("Steps that reuse what earlier ones computed", _WAYS),
    "attention": ("Attention backends", _WAYS),
    "compiled": ("torch.compile; compiling: until fast jobs are served by it", _WAYS),
    "formats": ("Formats of the denoiser's weights", _LIGHTER),
    "offloading": ("The denoiser's weights in host memory, brought for their calls", _LIGHTER),
}


class Records:
    """``results.jsonl`` and ``results.md`` in one folder, which is made anew."""

    def __init__(self, folder: Path, head: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = folder / "results.jsonl"
        self._tables = folder / "results.md"
        self._lines.write_text("", encoding="utf-8")
        self._head = head
        self._all: list[Record] = []

    def add(self, part: str, model: str, **values: Any) -> None:
        self._all.append({"part": part, "model": model, **values})
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._all[-1]) + "\n")

    def failed(self) -> bool:
        return any("error" in record for record in self._all)

    def write_tables(self) -> str:
        """The text of ``results.md``."""
        parts = [self._head]
        for part, (title, columns) in _TABLES.items():
            rows = [record for record in self._all if record["part"] == part and "seconds" in record]
            if rows:
                parts += [f"## {title}", _table(rows, columns)]
        left = [record for record in self._all if "skipped" in record or "error" in record]
        lines = [f"- {r['part']} of {r['model']}: {r.get('skipped') or r['error'].strip()}" for r in left]
        text = "\n\n".join([*parts, *(["## Not measured", "\n".join(lines)] if lines else [])]) + "\n"
        self._tables.write_text(text, encoding="utf-8")
        return text


def _taken(record: Record) -> int:
    """Bytes of weights on the device: as it counts them, or where it does not as the engine does."""
    return int(record.get("allocated_bytes") or record["loaded_bytes"])


def _table(rows: Sequence[Record], columns: Sequence[tuple[str, Callable[[Record], str]]]) -> str:
    head = ["model", "role", "size", *(name for name, _ in columns)]
    body = [[r["model"], r["role"], r.get("size", ""), *(show(r) for _, show in columns)] for r in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))
