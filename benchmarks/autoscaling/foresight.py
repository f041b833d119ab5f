"""A plan that knows every request, every loss and what each start takes: the fewest server-seconds that were found.

It begins with plenty and takes away a server for a while, wherever the deadlines are still met without, for ever
shorter whiles, until nothing more can be taken away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from math import ceil

from benchmarks.autoscaling import quick
from benchmarks.autoscaling.workloads import LOADS, scenario

STEP = 60.0
WHILES = (40, 20, 10, 5, 3, 2, 1)
"""Steps for which a server is taken away at a time."""
MET = 0.99
AT_ONCE = 3
NEAR = (-1, 0, 1)


@cache
def plan(load: str, seed: int) -> tuple[int, ...]:
    """Servers ready in each ``STEP``."""
    given = scenario(load, seed)
    (pool,) = given.pools
    tasks = quick.tasks_of(given)
    steps = ceil((LOADS[load].seconds + 200) / STEP)
    first = [ceil(LOADS[load].of(min(n * STEP, LOADS[load].seconds)) * 1.3) + 2 for n in range(steps)]
    first[0] = pool.begin or 0
    return tuple(_pared(first, tasks, pool.losses))


def mended(plan: Sequence[int], missed: Iterable[float]) -> tuple[int, ...]:
    """With a server more around the three moments with most ``missed`` requests, of which it has the arrivals."""
    raised, count = list(plan), Counter(int(at / STEP) for at in missed)
    for _ in range(AT_ONCE):
        worst = max(range(len(plan)), key=lambda step: sum(count[step + near] for near in NEAR))
        for near in NEAR:
            if count.pop(worst + near, 0) or not near:
                raised[min(max(worst + near, 0), len(plan) - 1)] += 1
    return tuple(raised)


def _pared(plan: list[int], tasks: Sequence[quick.Task], losses: Sequence[float]) -> list[int]:
    cost = quick.planned(tasks, plan, STEP, losses).cost
    for length in (*WHILES, *WHILES[2:]):
        for begin in range(1, len(plan), max(1, length // 2)):
            while True:
                fewer = [n - (begin <= i < begin + length) for i, n in enumerate(plan)]
                if min(fewer) < 1:
                    break
                found = quick.planned(tasks, fewer, STEP, losses)
                if found.met < MET or found.cost >= cost:
                    break
                plan, cost = fewer, found.cost
    return plan
