"""A picture of a load: latency over time, and how it is distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt  # the backend must be chosen first

from clients.load.sending import Outcome


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Raises ``OSError``, or ``ValueError`` when the ending is of no format that matplotlib writes."""
    figure, (over_time, shares) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in sorted({outcome.kind for outcome in outcomes}):
        good = [o for o in outcomes if o.kind == name and o.succeeded]
        (dots,) = over_time.plot([o.at for o in good], [o.seconds for o in good], ".", label=name)
        ordered = sorted(o.seconds for o in good)
        parts = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
        shares.step(ordered, parts, where="post", color=dots.get_color(), label=name)
        for slo in {o.slo_seconds for o in good if o.slo_seconds is not None}:
            shares.axvline(slo, color=dots.get_color(), linestyle=":")
    failed = [o for o in outcomes if not o.succeeded]
    if failed:
        over_time.plot([o.at for o in failed], [o.seconds for o in failed], "kx", label="failed")
    over_time.set(xlabel="scheduled arrival, s", ylabel="latency, s", ylim=(0, None))
    shares.set(xlabel="latency, s", ylabel="share of successes", xlim=(0, None), ylim=(0, 1))
    over_time.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
