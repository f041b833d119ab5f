"""A pool as one queue, first come, first served, in milliseconds: to search the plan that knows all.

What would be late is turned away, as admission would. What is published is measured with the full simulator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from benchmarks.autoscaling.workloads import COLD_START, alone
from scheduler.sim.setup import Scenario

START = sum(COLD_START) / 2
"""Seconds that a start takes in the mean."""


@dataclass(frozen=True, slots=True)
class Task:
    at: float
    seconds: float
    due: float


@dataclass(frozen=True, slots=True)
class Figures:
    met: float
    """Share of all requests."""
    cost: float
    """Server-seconds."""


def tasks_of(scenario: Scenario) -> list[Task]:
    trace = scenario.workload.trace
    return [Task(each.at, alone(each.kind), each.at + each.kind.deadline) for each in trace]


def planned(tasks: Sequence[Task], plan: Sequence[int], step: float, losses: Sequence[float]) -> Figures:
    """With so many servers ready in each ``step`` seconds; the first are there from the start, free of charge."""
    spans = _spans(plan, step, losses)
    number = count()
    heap: list[tuple[float, int, float]] = []
    ends = {}
    for ready, gone in spans:
        heappush(heap, (ready, n := next(number), gone))
        ends[n] = gone
    met = 0
    for task in tasks:
        kept = []
        while heap:
            free, n, gone = heappop(heap)
            start = max(free, task.at)
            if start >= gone:
                continue
            if start + task.seconds <= task.due:
                heappush(heap, (start + task.seconds, n, gone))
                ends[n] = max(gone, start + task.seconds)
                met += 1
            else:
                kept.append((free, n, gone))
            break
        for each in kept:
            heappush(heap, each)
    cost = sum(ends[n] - ready + (START if ready > 0 else 0.0) for n, (ready, _) in enumerate(spans))
    return Figures(met / len(tasks), cost)


def _spans(plan: Sequence[int], step: float, losses: Sequence[float]) -> list[tuple[float, float]]:
    """(ready, gone) of each server: those that came first go first, also those whose machine is taken away."""
    here: deque[float] = deque([0.0] * plan[0])
    spans: list[tuple[float, float]] = []
    lost = deque(losses)
    for number, wanted in enumerate(plan):
        at = number * step
        while lost and lost[0] < at + step:
            when = lost.popleft()
            if here:
                spans.append((here.popleft(), when))
                here.append(when)
        while len(here) > wanted:
            spans.append((here.popleft(), at))
        here.extend([at] * (wanted - len(here)))
    return spans + [(ready, len(plan) * step) for ready in here]
