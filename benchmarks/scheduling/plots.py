"""Pictures of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt  # the backend must be chosen first

from benchmarks.scheduling import backlog, ordering, shifting, workloads
from benchmarks.scheduling.contenders import CONTENDERS
from benchmarks.scheduling.statistics import Estimate, estimate
from benchmarks.scheduling.tasks import Results
from scheduler.sim.metrics import Result
from wire.types import REQUIRED, Role

SIZE = (9.0, 4.2)
POLICIES = ("ours", *shifting.ROLE_BASELINES, "lower bound")


def shifts(results: Results, path: Path) -> None:
    """Mean latency of each role policy on each shifting workload."""
    bars = {
        name: [_of(results, shifting.latencies, (workload, name), "mean") for workload in workloads.SHIFTS]
        for name in POLICIES
    }
    _grouped(list(workloads.SHIFTS), bars, "mean latency, s", path)


def orders(results: Results, path: Path) -> None:
    """p99 slowdown of each size class at 90 % load."""
    kinds = ordering.kinds(results)
    bars = {
        name: [_of(results, ordering.compared, ("90 %",), f"{name}: slowdown {kind}") for kind in kinds]
        for name in ordering.NAMES
    }
    _grouped(kinds, bars, "p99 slowdown", path)


def throughput(results: Results, path: Path) -> None:
    """Shares of the fluid bound."""
    cases = [*backlog.SETS, *backlog.EXCLUSIVE]
    bars = {"ours": [_of(results, backlog.throughput, case, "of bound") for case in cases]}
    _grouped([f"{mix}\n({fleet})" for fleet, mix in cases], bars, "throughput / fluid bound", path, tilted=True)


def roles_over_time(path: Path) -> None:
    """Holders of each role through workload 2, ours, seed 1."""
    scenario = workloads.shifting("2 step shift")
    result = CONTENDERS["ours"].run(scenario, 1)
    figure, axes = plt.subplots(figsize=SIZE)
    end = result.until - 0.1
    times = sorted({0.1, *(change.at + 0.01 for change in result.roles if change.at < end), end})
    for role in REQUIRED:
        axes.step(times, _holders(result, role, times), where="post", label=role.value)
    for began, phase in scenario.workload.starts():
        names = " + ".join(kind.name for _, kind in phase.mix)
        axes.axvline(began, color="grey", linewidth=0.5)
        axes.text(began, 7.4, f" {names}", fontsize=8)
    axes.set(xlabel="s", ylabel="servers that hold the role", ylim=(0, 8))
    _save(figure, axes, path)


def _holders(result: Result, role: Role, times: Sequence[float]) -> list[int]:
    return [result.holders(role, at) for at in times]


def _of(results: Results, function: object, key: tuple[str, ...], figure: str) -> Estimate:
    return estimate(results.values(function, *key, figure=figure))  # type: ignore[arg-type]


def _grouped(
    groups: Sequence[str], bars: Mapping[str, Sequence[Estimate]], label: str, path: Path, *, tilted: bool = False
) -> None:
    figure, axes = plt.subplots(figsize=SIZE)
    width = 0.8 / len(bars)
    for number, (name, values) in enumerate(bars.items()):
        at = [i + (number - (len(bars) - 1) / 2) * width for i in range(len(groups))]
        errors = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
        axes.bar(at, [v.value for v in values], width, yerr=errors, label=name, error_kw={"linewidth": 0.8})
    axes.set_xticks(
        range(len(groups)), groups, fontsize=7, rotation=60 if tilted else 0, ha="right" if tilted else "center"
    )
    axes.set_ylabel(label)
    _save(figure, axes, path)


def _save(figure: plt.Figure, axes: plt.Axes, path: Path) -> None:
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
