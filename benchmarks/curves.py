"""Row 9's curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt  # the backend must be chosen first

PAPER = (3.4, 20.5)
"""What the paper has for its own swap per request."""


def draw(lines: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9.0, 4.2))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name)
    for value in PAPER:
        axes.axhline(value, color="grey", linewidth=0.6, linestyle="--")
        axes.text(0, value, f" the paper's {value:g} ×", fontsize=7, va="bottom", color="grey")
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set(xlabel="weight bytes / link bandwidth, s per request", ylabel="mean latency over ours", yscale="log")
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
