"""A result for people: a table of figures, and plots (which need matplotlib, from the ``bench`` extra)."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

from scheduler.sim.metrics import End, Result, mean, quantile
from wire.types import STAGES, Role

BINS = 60
COLOURS = {
    Role.ENHANCER: "tab:purple",
    Role.ENCODER: "tab:blue",
    Role.DIT: "tab:orange",
    Role.DECODER: "tab:green",
    Role.UPSCALER: "tab:red",
}


class PlotsUnavailable(Exception):
    """matplotlib is not installed."""


def table(result: Result) -> list[str]:
    """Lines of text."""
    latencies = result.latencies()
    rows = [
        ("requests", f"{len(result.requests)}"),
        *((f"  {end.value}", f"{result.count(end)}") for end in End if result.count(end)),
        ("finished per second", f"{result.throughput(0.0, max(result.until, 1e-9)):.4g}"),
        ("latency mean / p50 / p99", _seconds(mean(latencies), quantile(latencies, 0.5), quantile(latencies, 0.99))),
        ("deadlines missed", f"{100 * result.deadline_misses():.2f} % of admitted"),
        ("predicted / true latency − 1", _percent(*(quantile(result.wait_errors(), q) for q in (0.1, 0.5, 0.9)))),
        ("role changes", f"{len(result.moves)}"),
        *((f"{role.value} servers busy", f"{100 * result.busy_fraction(role):.1f} %") for role in _shown(result)),
        *((f"slowdown p99 of {kind}", f"{value:.2f}") for kind, value in result.slowdown_p99().items()),
        *_tenants(result),
        ("events", f"{result.events} in {result.until:.0f} s of virtual time"),
    ]
    return [result.scenario, *(f"  {name:32} {value}" for name, value in rows)]


def _shown(result: Result) -> list[Role]:
    """Those of optional stages only where some server had them."""
    held = {role for change in result.roles for role in change.roles}
    return [role for role in Role if role in held or not STAGES[role].is_optional]


def plot(result: Result, folder: Path) -> list[Path]:
    """Throughput, latency and roles over time as PNG files in ``folder``. Raises ``PlotsUnavailable``."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise PlotsUnavailable("plots need matplotlib: pip install 'disagfusion[bench]'") from error
    mpl.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[Any, Result], None]] = {
        "throughput": _draw_throughput,
        "latency": _draw_latency,
        "roles": _draw_roles,
    }
    return [_save(folder / f"{name}.png", draw, result) for name, draw in drawings.items()]


def _save(path: Path, draw: Callable[[Any, Result], None], result: Result) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.add_subplot(title=result.scenario, xlabel="virtual time, s")
    draw(axes, result)
    figure.savefig(path, dpi=120)
    return path


def _draw_throughput(axes: Any, result: Result) -> None:
    width = max(result.until / BINS, 1e-9)
    edges = [i * width for i in range(BINS)]
    axes.step(edges, [result.throughput(at, at + width) for at in edges], where="post", label="finished")
    arrived = [0] * (BINS + 1)
    for request in result.requests:
        arrived[int(request.arrived / width)] += 1
    axes.step(edges, [count / width for count in arrived[:BINS]], where="post", label="arrived", alpha=0.5)
    axes.set(ylabel="requests per second", ylim=0)
    axes.legend()


def _draw_latency(axes: Any, result: Result) -> None:
    kinds = sorted({request.kind for request in result.requests})
    for kind in kinds:
        found = [r for r in result.finished() if r.kind == kind]
        axes.plot([r.ended for r in found], [r.latency for r in found], ".", markersize=3, label=kind)
    axes.set(ylabel="latency, s", ylim=0)
    axes.legend(fontsize="small")


def _draw_roles(axes: Any, result: Result) -> None:
    times = sorted({change.at for change in result.roles} | {result.until})
    for role in _shown(result):
        held = [result.holders(role, at) for at in times]
        axes.step(times, [*held[:-1], *held[-2:-1]], where="post", label=role.value, color=COLOURS[role])
    top = ceil(max((result.holders(role, at) for role in Role for at in times), default=1) * 1.1)
    axes.set(ylabel="servers that hold the role", ylim=(0, top))
    axes.legend()


def _tenants(result: Result) -> list[tuple[str, str]]:
    total = sum(result.tenant_seconds.values())
    if len(result.tenant_seconds) < 2:
        return []
    shares = sorted(result.tenant_seconds.items())
    return [(f"device time of tenant {name or '(none)'}", f"{100 * used / total:.1f} %") for name, used in shares]


def _seconds(*values: float) -> str:
    return " / ".join(f"{value:.2f}" for value in values) + " s"


def _percent(*values: float) -> str:
    return "p10 / p50 / p90 " + " / ".join(f"{100 * value:+.0f} %" for value in values)
