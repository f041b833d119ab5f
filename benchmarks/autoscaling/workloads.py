"""Four loads on one pool of FLUX.1-dev on L20s, whose servers each hold every role. Loads are in servers' worth.

A day is compressed to two hours, twelvefold, while cold starts are not: its slopes are twelve times as steep for them
as a real day's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import pi, sin
from random import Random

from scheduler.cost.model import CostModel
from scheduler.scaling.pools import Pool
from scheduler.sim import suite
from scheduler.sim.setup import PoolSetup, Scenario, ServerSetup
from scheduler.sim.workload import Arrival, Kind, Workload

PROFILE = "flux.1-dev-l20"
MOST = 30
COLD_START = (60.0, 180.0)
NOTICE = 120.0
REPORT_SECONDS = 30.0
"""Progress matters to pauses and hand-overs, which are off, and to predictions a little."""
KINDS = (
    (0.2, Kind("768", 768, 768, 20)),
    (0.6, Kind("1024", 1024, 1024, 25)),
    (0.2, Kind("1024, 50 steps", 1024, 1024, 50)),
)


@dataclass(frozen=True, slots=True)
class Load:
    seconds: float
    of: Callable[[float], float]
    """Seconds since the start → servers' worth of work asked for."""
    most: float
    """That ``of`` ever says."""
    loss_every: float = 0.0
    """Mean seconds between two losses of spot machines; 0: none."""


def _day(at: float) -> float:
    """From one to ten and back, beginning and ending at the least."""
    return 5.5 - 4.5 * sin(2 * pi * (at / 7200 + 0.25))


def _crowd(at: float) -> float:
    """Three, and twelve for ten minutes, within twenty seconds."""
    rise = min(1.0, max(0.0, (at - 2400) / 20))
    fall = min(1.0, max(0.0, (at - 3000) / 20))
    return 3.0 + 9.0 * (rise - fall)


LOADS: Mapping[str, Load] = {
    "day": Load(7200.0, _day, 10.0),
    "flash crowd": Load(7200.0, _crowd, 12.0),
    "drift": Load(7200.0, lambda at: 2.0 + 6.0 * at / 7200, 8.0),
    "spot losses": Load(7200.0, lambda at: 6.0 - 2.0 * sin(2 * pi * at / 7200), 8.0, loss_every=600.0),
}


@cache
def alone(kind: Kind) -> float:
    """Seconds that a request takes on an idle server."""
    server = _server()
    truth = CostModel([server.profile])
    return sum(truth.seconds(work, server.target) for work in kind.works())


@cache
def kinds() -> tuple[tuple[float, Kind], ...]:
    """With their deadlines: five times the unloaded latency, and a minute."""
    return tuple((weight, replace(kind, deadline=5 * alone(kind) + 60)) for weight, kind in KINDS)


def mean_seconds() -> float:
    return sum(weight * alone(kind) for weight, kind in kinds())


@cache
def scenario(name: str, seed: int) -> Scenario:
    """Arrivals, and losses of machines, depend on the seed alone."""
    load, chance = LOADS[name], Random(f"{name}/{seed}")
    weights, some = zip(*kinds(), strict=True)
    arrivals, at, peak = [], 0.0, load.most / mean_seconds()
    while (at := at + chance.expovariate(peak)) < load.seconds:
        if chance.random() * load.most < load.of(at):
            arrivals.append(Arrival(at, chance.choices(some, weights)[0]))
    begin = round(load.of(0.0)) + 1
    pool = Pool("gpus", _server().model, min=1, max=MOST, cold_start_seconds=sum(COLD_START) / 2)
    setup = PoolSetup(pool, _server(), begin, COLD_START, _losses(load, chance), NOTICE)
    return Scenario(name, (), Workload(trace=tuple(arrivals)), pools=(setup,))


def _losses(load: Load, chance: Random) -> tuple[float, ...]:
    found, at = [], NOTICE
    while load.loss_every and (at := at + chance.expovariate(1 / load.loss_every)) < load.seconds:
        found.append(at)
    return tuple(found)


def _server() -> ServerSetup:
    return ServerSetup("gpu", suite.bundled_profile(PROFILE), report_seconds=REPORT_SECONDS)
