"""Rows and tables of what the runs came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.autoscaling.quick import Figures
from benchmarks.autoscaling.runs import FORESIGHT, MET, PREDICTION, one
from benchmarks.rows import Goal, Row
from benchmarks.scheduling.tasks import Key, Results

COMMAND = "python -m benchmarks.autoscaling"
COST = 1.15
Chosen = Mapping[tuple[str, str], str]
"""(contender, load) → the grid's setting."""

HEAD = """# Autoscaling

Simulated, with the real scheduler and the L20's published stage times, seeds: {seeds}, the same for all; made
by `{command}`. Deadlines are five times the unloaded latency and a minute, starts take 60 to 180 s, and a day
is compressed to two hours. Every server holds every role; pauses and hand-overs are off, for speed.
*Server-hours* run from a server's order to its end; they are relative to the plan that knows the future: every
request, every loss, and what each start takes. *Met* is the share of all requests, refused ones among them,
that had their pictures in time. HPA and KEDA have the best settings of the grids below for each load, chosen
with hindsight. How it works: [autoscaling.md](../autoscaling.md).
"""


def contenders(load: str, chosen: Chosen) -> list[Key]:
    """What is run of a load: contender, setting, load."""
    reactive = [(name, setting, load) for (name, of), setting in chosen.items() if of == load]
    return [(FORESIGHT, "", load), (PREDICTION, "", load), *reactive]


def rows_of(results: Results, loads: Sequence[str], chosen: Chosen, seeds: Sequence[int]) -> Iterator[Row]:
    for load in loads:
        for key in contenders(load, chosen):
            name, is_ours = key[0], key[0] == PREDICTION
            met = _mean(results, key, "met")
            cost = _cost(results, load, key)
            case = f"{load}, {name}" + (f" ({key[1]})" if key[1] else "")
            goals = (Goal(">=", MET), Goal("<=", COST)) if is_ours else (None, None)
            for measure, value, unit, goal in (
                ("deadlines met", met, "of requests", goals[0]),
                ("server-hours, of a plan that knows the future", cost, "×", goals[1]),
            ):
                yield Row("autoscaling", measure, case, value, unit, goal, "simulated", COMMAND, tuple(seeds))


def markdown(
    results: Results,
    loads: Sequence[str],
    chosen: Chosen,
    searched: Mapping[tuple[str, str], Mapping[str, Figures]],
    seeds: Sequence[int],
) -> str:
    lines = [HEAD.format(seeds=len(seeds), command=COMMAND)]
    lines += ["| load | who decides | met | server-hours | starts | mean latency, s |", "|---|---|---|---|---|---|"]
    for load in loads:
        for key in contenders(load, chosen):
            lines.append(_line(results, load, key))
    lines += ["", f"Goal of prediction: {MET:.0%} met at no more than {COST} × the server-hours.", ""]
    lines += [_goals(results, load, chosen) for load in loads]
    lines += ["", "## The grids", "", _GRIDS, ""]
    for (name, load), found in searched.items():
        lines += [f"**{name}, {load}** (met, server-hours): " + "; ".join(_told(found, name, load, chosen)) + ".", ""]
    return "\n".join(lines)


_GRIDS = """One seed, as above. Bold: the cheapest that meets the deadlines, which is compared above; where none does,
that which meets most. The plan that knows the future is pared down in a quick model (one queue, first come, first
served), then given a server more wherever it misses most in the full one, until it meets the deadlines there too."""


def _line(results: Results, load: str, key: Key) -> str:
    who = f"{key[0]}: {key[1]}" if key[1] else key[0]
    return (
        f"| {load} | {who} | {_mean(results, key, 'met'):.2%} | {_cost(results, load, key):.3f} × | "
        f"{_mean(results, key, 'starts'):.1f} | {_mean(results, key, 'mean'):.0f} |"
    )


def _goals(results: Results, load: str, chosen: Chosen) -> str:
    key = next(key for key in contenders(load, chosen) if key[0] == PREDICTION)
    met, cost = _mean(results, key, "met"), _cost(results, load, key)
    said = [f"deadlines {'met' if met >= MET else 'NOT met'} ({met:.2%})"]
    said.append(f"server-hours {'met' if cost <= COST else 'NOT met'} ({cost:.3f} ×)")
    return f"- {load}: {', '.join(said)}"


def _told(found: Mapping[str, Figures], name: str, load: str, chosen: Chosen) -> Iterator[str]:
    for setting, figures in found.items():
        text = f"{setting}: {figures.met:.1%}, {figures.cost / 3600:.1f} h"
        yield f"**{text}**" if chosen[(name, load)] == setting else text


def _mean(results: Results, key: Key, figure: str) -> float:
    values = results.values(one, *key, figure=figure)
    return sum(values) / len(values)


def _cost(results: Results, load: str, key: Key) -> float:
    plan = results.values(one, FORESIGHT, "", load, figure="seconds")
    mine = results.values(one, *key, figure="seconds")
    return sum(a / b for a, b in zip(mine, plan, strict=True)) / len(plan)
