"""The results as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

HEAD = """\
# Faster steps, and what they change

Written by `python -m benchmarks.faster`, never by hand. The bundled model on one core; speed is processor time of the
exact denoising over this one's, picture by picture in turns in one run. Errors are differences of a channel's value in
the decoded pictures, of 255: over everything (mean), of the picture in the middle and the worst one (their means), and
the largest of all. What it means: [faster steps](../faster.md).
"""


def render(kept: Mapping[str, Any]) -> str:
    pages = [HEAD]
    for part, found in kept.items():
        pages.append(
            f"\n## {part.replace('-', ' ').capitalize()}\n\n{found['pictures']} pictures, {found['machine']}.\n"
        )
        pages += ["\n" + "\n".join(_RENDERED[part](case)) + "\n" for case in found["cases"]]
    return "".join(pages)


def _step_caches(case: Mapping[str, Any]) -> Iterator[str]:
    rows, refused = _split(case["rows"])
    yield f"{case['side']} × {case['side']}, {case['steps']} steps, guidance 3:\n"
    head = ("cache", "speed", "blocks computed", "attention computed", "mean", "middle", "worst", "largest", "equal")
    yield from _table(
        head,
        (
            (
                f"`{row['cache']}`",
                f"{row['speed']:.2f} ×",
                f"{row['blocks']:.0%}",
                f"{row['attention']:.0%}",
                *_errors(row),
            )
            for row in rows
        ),
    )
    for row in refused:
        yield f"\n`{row['cache']}` is refused: {row['refused']}."
    if ratios := next((row["ratios"] for row in rows if "ratios" in row), None):
        yield f"\n`mag` with `ratios={ratios}`, calibrated here."


def _compile(case: Mapping[str, Any]) -> Iterator[str]:
    yield f"{case['side']} × {case['side']}, {case['steps']} steps, guidance 3:\n"
    yield from _table(
        ("compiled from nothing", "from the disk", "speed", "mean", "middle", "worst", "largest", "equal"),
        [(f"{case['from_nothing']:.0f} s", f"{case['from_disk']:.0f} s", f"{case['speed']:.2f} ×", *_errors(case))],
    )


def _attention(case: Mapping[str, Any]) -> Iterator[str]:
    rows, refused = _split(case["rows"])
    yield f"{case['side']} × {case['side']}, {case['steps']} steps, guidance 3, against the native one:\n"
    head = ("backend", "speed", "mean", "middle", "worst", "largest", "equal")
    yield from _table(head, ((f"`{row['backend']}`", f"{row['speed']:.2f} ×", *_errors(row)) for row in rows))
    names = ", ".join(f"`{row['backend']}`" for row in refused)
    yield f"\nNot usable here: {names}."


def _errors(row: Mapping[str, Any]) -> tuple[str, ...]:
    means = (f"{row[name]:.2f}" for name in ("mean", "median_picture", "worst_picture"))
    return (*means, str(row["largest"]), str(row["equal"]))


def _split(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    every = list(rows)
    return [row for row in every if "refused" not in row], [row for row in every if "refused" in row]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


_RENDERED: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "step-caches": _step_caches,
    "compile": _compile,
    "attention": _attention,
}
