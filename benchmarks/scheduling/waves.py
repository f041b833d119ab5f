"""Square waves: two mixes that take turns faster than roles usually pay, against roles left alone."""

from __future__ import annotations

from benchmarks.scheduling import workloads
from benchmarks.scheduling.contenders import CONTENDERS
from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate, ratio
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.sim.metrics import mean, quantile

CASES = (
    ("exclusive", "all 4-step", "all 1-step", "60 %"),
    ("exclusive", "all 4-step", "all 1-step", "75 %"),
    ("exclusive", "drawing", "edits", "60 %"),
    ("exclusive", "drawing", "edits", "75 %"),
    ("role sets", "drawing", "edits", "60 %"),
    ("role sets", "drawing", "edits", "75 %"),
)
"""Fleet, the two mixes, load in each."""
ALONE, FREE = "static, average, role sets", "lower bound"
HALF_SECONDS = 60.0


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(latencies, [(*case, name) for case in CASES for name in ("ours", ALONE, FREE)])


def latencies(fleet: str, one: str, other: str, load: str, contender: str, seed: int, quick: bool) -> Figures:
    share = int(load.split()[0]) / 100
    scenario = workloads.waves(fleet, one, other, share, HALF_SECONDS, 4 if quick else 12)
    result = CONTENDERS[contender].run(scenario, seed)
    took = [r.latency for r in result.requests]
    return {"mean": mean(took), "p99": quantile(took, 0.99), "moves": float(len(result.moves))}


def report(results: Results) -> Report:
    found = Report("Square waves")
    body = []
    for case in CASES:
        fleet, one, other, load = case
        runs = {name: results.of(latencies, *case, name) for name in ("ours", ALONE, FREE)}
        means = {name: [run["mean"] for run in some] for name, some in runs.items()}
        label = f"{fleet}: {one} and {other} at {load}, {HALF_SECONDS:g} s each"
        against = ratio(means["ours"], means[ALONE])
        found.rows.append(Row(3, "mean latency / roles left alone", label, against, "", Goal("<=", 1.0)))
        moves = estimate([run["moves"] for run in runs["ours"]])
        body.append([label, str(against), str(ratio(means[FREE], means["ours"])), str(moves)])
    found.text = [
        "*Roles left alone*: the best for the mean of both mixes, from the start and for good. *Free switches*: every "
        "server can do everything at once. Twelve half-waves; all requests count.",
        table(["wave", "mean latency: ours / roles left alone", "free switches / ours", "moves"], body),
    ]
    return found
