"""Row 9, the paper's case: the weights of all stages do not fit one worker. Simulated; Wan2.2 on eight A10s.

Ours is the real scheduler in virtual time; each worker holds one stage, and has it for good. Beside it monoliths, with
the same stage times and the same arrivals, whose workers bring every stage's weights over a link:

- *a swap per request*: all weights, one stage after the other, for each request: the paper's baseline.
- *batches per stage*: a worker takes all that waits, or its share, and each stage's weights come once for all.
- *offloads well*: the next stage's weights come while the last one computes, the first one's while the request before
  is decoded. That asks for room for two stages, which is more than the profile's devices have.

The load is 80 % of what ours can bear. Where a monolith cannot bear it, its queue grows for as long as requests come,
and so does its latency: what is reported is that of ``REQUESTS`` requests which find the service empty.

python -m benchmarks.memory_bound
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from heapq import heapreplace
from math import ceil
from statistics import fmean

from benchmarks.rows import Goal, Row, show
from benchmarks.scheduling.contenders import FIRST_COME, Contender
from benchmarks.scheduling.twin import knowing, patient
from benchmarks.scheduling.workloads import CLIP, FLEETS
from scheduler.cost.profile import Profile
from scheduler.sim.bound import static_rate, with_best_roles
from scheduler.sim.metrics import End
from scheduler.sim.setup import Scenario, ServerSetup
from scheduler.sim.workload import Phase, Workload, mix_of
from wire.types import REQUIRED, Role

COMMAND = "python -m benchmarks.memory_bound"
LOAD = 0.8
REQUESTS = 400
SEEDS = (1, 2, 3, 4, 5)
MOST = 64
"""Requests in a batch; more do not wait."""
EXPERTS = 2
"""Of the dit, each of its ``weights_gb``; one is on the device at a time."""
PAPER_SECONDS = 275.0
"""That a request of the paper's monolith takes beyond its stages: see the source of the profile ``…-monolithic``."""
CURVE = (0.0, 3.0, 10.0, 30.0, 100.0, PAPER_SECONDS)
"""Weight bytes over the link's bandwidth, seconds per request."""
LEAST = 3.4

FIXED = Contender(settings=replace(FIRST_COME, max_batch=1), roles=lambda _: None)
"""Ours with the roles as they are, in order of arrival: what else it can do is not what is compared."""

Stage = tuple[float, float]
"""Seconds of compute and of loading, in the order of the stages."""
Serve = Callable[[Sequence[Stage], int], float]
"""Seconds for which a worker is taken by so many requests."""


def rows(seeds: int = len(SEEDS)) -> list[Row]:
    chosen = SEEDS[:seeds]
    runs = [_ours(seed) for seed in chosen]
    ours = fmean(mean for mean, _ in runs)
    found = [_row("mean latency", "ours", ours, "s", chosen)]
    for seconds in CURVE:
        stages = _stages(seconds)
        for name, (most, serve) in MONOLITHS.items():
            latency = fmean(fmean(_latencies(arrivals, stages, most, serve)) for _, arrivals in runs)
            asked = name == "a swap per request" and seconds == PAPER_SECONDS
            case = f"{name} at {seconds:g} s of weights"
            goal = Goal(">=", LEAST) if asked else None
            found.append(_row("mean latency of a monolith over ours", case, latency / ours, "×", chosen, goal))
    return found


# --- monoliths --------------------------------------------------------------------------------------------------------


def _swapped(stages: Sequence[Stage], count: int) -> float:
    """Each stage's weights once for all of them; no time is gained by computing several together."""
    return sum(load + count * compute for compute, load in stages)


def _overlapped(stages: Sequence[Stage], count: int) -> float:
    """While a stage computes, the weights of the next one come; the last one's is the first of the next request."""
    loads = [load for _, load in stages]
    following = [*loads[1:], loads[0]]
    return sum(max(count * compute, coming) for (compute, _), coming in zip(stages, following, strict=True))


MONOLITHS: dict[str, tuple[int, Serve]] = {
    "a swap per request": (1, _swapped),
    "batches per stage": (MOST, _swapped),
    "offloads well": (1, _overlapped),
    "offloads well, batches per stage": (MOST, _overlapped),
}


def _latencies(arrivals: Sequence[float], stages: Sequence[Stage], most: int, serve: Serve) -> list[float]:
    """One queue, in order of arrival; a worker that is free takes what waits, up to ``most``; several share it."""
    free = [0.0] * len(_servers())
    took: list[float] = []
    first = 0
    while first < len(arrivals):
        begins = max(free[0], arrivals[first])
        waiting = sum(arrived <= begins for arrived in arrivals[first : first + most * len(free)])
        idle = sum(each <= begins for each in free)
        count = min(most, ceil(waiting / idle))
        ends = begins + serve(stages, count)
        took += [ends - arrived for arrived in arrivals[first : first + count]]
        heapreplace(free, ends)
        first += count
    return took


def _stages(seconds: float) -> list[Stage]:
    """Of one clip, when all its weights take so long to come."""
    cost, target = knowing(_scenario()), _servers()[0].target
    profile = _servers()[0].profile
    computes = {work.role: cost.seconds(work, target) for work in CLIP.works()}
    weights = {role: _weights(profile, role) for role in REQUIRED}
    whole = sum(weights.values())
    return [(computes[role], seconds * weights[role] / whole) for role in REQUIRED]


def _weights(profile: Profile, role: Role) -> int:
    return profile.roles[role].weights_bytes * (EXPERTS if role is Role.DIT else 1)


# --- ours -------------------------------------------------------------------------------------------------------------


def _ours(seed: int) -> tuple[float, list[float]]:
    """Mean latency, and when the requests came."""
    result = FIXED.run(_scenario(), seed)
    assert all(r.end is End.FINISHED for r in result.requests), "a request was lost"
    return fmean(r.latency for r in result.requests), sorted(r.arrived for r in result.requests)


@cache
def _scenario() -> Scenario:
    servers = _servers()
    phase = Phase(1.0, mix_of(CLIP))
    rate = LOAD * static_rate(servers, phase)
    phase = replace(phase, rate=rate, seconds=REQUESTS / rate)
    return patient(Scenario("memory-bound", servers, Workload((phase,))))


@cache
def _servers() -> tuple[ServerSetup, ...]:
    """Each with the one stage that the mix wants of it."""
    return with_best_roles(FLEETS["paper"](), Phase(1.0, mix_of(CLIP)), exclusive=True)


def _row(measure: str, case: str, value: float, unit: str, seeds: tuple[int, ...], goal: Goal | None = None) -> Row:
    return Row(9, measure, case, value, unit, goal, "simulated", COMMAND, seeds)


def main() -> None:
    show(rows())


if __name__ == "__main__":
    main()
