"""Figures of a load's outcomes: numbers, and the same in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from clients.load.sending import Outcome

SHARES = (50, 90, 95, 99)


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Latencies of successes in seconds from the scheduled arrival; throughput until the last success."""
    good = [outcome for outcome in outcomes if outcome.succeeded]
    end = max((outcome.at + outcome.seconds for outcome in good), default=0.0)
    return _figures(outcomes) | {
        "seconds": end,
        "requests_per_second": len(good) / end if end else 0.0,
        "pictures_per_second": sum(outcome.pictures for outcome in good) / end if end else 0.0,
        "retries": sum(outcome.attempts - 1 for outcome in outcomes),
        "first_partial_seconds": spread(o.first_partial_seconds for o in good if o.first_partial_seconds is not None),
        "prediction": _prediction(good),
        "errors": dict(Counter(f"{o.status} {o.code}" for o in outcomes if not o.succeeded).most_common()),
        "late_seconds": max((outcome.late for outcome in outcomes), default=0.0),
        "kinds": {
            name: _figures([outcome for outcome in outcomes if outcome.kind == name])
            for name in sorted({outcome.kind for outcome in outcomes})
        },
    }


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "requests": len(outcomes),
        "succeeded": sum(outcome.succeeded for outcome in outcomes),
        "latency_seconds": spread(outcome.seconds for outcome in outcomes if outcome.succeeded),
        "slo_attained": _attained(outcomes),
    }


def _attained(outcomes: Sequence[Outcome]) -> float | None:
    """Share of the requests that have an SLO; failures miss it."""
    met = [o.succeeded and o.seconds <= o.slo_seconds for o in outcomes if o.slo_seconds is not None]
    return sum(met) / len(met) if met else None


def _prediction(good: Sequence[Outcome]) -> dict[str, float] | None:
    """Of what the server foresaw at admission against what its answer took. Above 0: it took longer than foreseen."""
    pairs = [(o.service_seconds, o.predicted_seconds) for o in good if o.predicted_seconds]
    if not pairs:
        return None
    off = [real - predicted for real, predicted in pairs]
    return {
        "requests": len(pairs),
        "median_error_seconds": quantile(sorted(off), 0.5),
        "median_absolute_error_seconds": quantile(sorted(map(abs, off)), 0.5),
        "p90_absolute_error_seconds": quantile(sorted(map(abs, off)), 0.9),
        "median_relative_error": quantile(sorted(abs(real / predicted - 1) for real, predicted in pairs), 0.5),
    }


def spread(values: Iterable[float]) -> dict[str, float] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    shares = {f"p{share}": quantile(ordered, share / 100) for share in SHARES}
    return {"mean": sum(ordered) / len(ordered), **shares, "max": ordered[-1]}


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def in_words(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['succeeded']} of {found['requests']} requests succeeded in {found['seconds']:.1f} s: " + (
        f"{found['requests_per_second']:.3g} requests/s, {found['pictures_per_second']:.3g} pictures/s"
    )
    head = ("", "n", "mean", *(f"p{share}" for share in SHARES), "max", "in SLO")
    yield _row(head)
    kinds = found["kinds"] if len(found["kinds"]) > 1 else {}
    for name, figures in {"latency, s": found, **kinds}.items():
        yield _row([name, str(figures["succeeded"]), *_spread(figures["latency_seconds"]), _share(figures)])
    if first := found["first_partial_seconds"]:
        yield _row(["first preview, s", "", *_spread(first), ""])
    if prediction := found["prediction"]:
        yield (
            f"predicted by the server: {prediction['median_relative_error']:.0%} off in the median, that is "
            f"{prediction['median_absolute_error_seconds']:.3g} s "
            f"(p90 {prediction['p90_absolute_error_seconds']:.3g} s); "
            f"took {prediction['median_error_seconds']:+.3g} s against it in the median"
        )
    for error, count in found["errors"].items():
        yield f"{count} × {error}"
    if found["retries"]:
        yield f"{found['retries']} retries"
    yield f"requests left at most {found['late_seconds'] * 1e3:.0f} ms late"


def _row(cells: Sequence[str]) -> str:
    return f"{cells[0]:<22}" + "".join(f"{cell:>9}" for cell in cells[1:]).rstrip()


def _spread(values: dict[str, float] | None) -> list[str]:
    return [f"{value:.3g}" for value in values.values()] if values else ["–"] * (len(SHARES) + 2)


def _share(figures: dict[str, Any]) -> str:
    return "" if figures["slo_attained"] is None else f"{figures['slo_attained']:.1%}"
