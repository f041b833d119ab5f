"""Processor time of one decision of the scheduler: 1,000 servers, 10,000 waiting requests, everything else simulated.

python -m benchmarks.scheduling.decision_time [--policies first-come|elastic] [--servers N] [--requests N] [--events N]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from time import thread_time_ns
from typing import Any

from scheduler import events as ev
from scheduler.actions import Action
from scheduler.core import Scheduler
from scheduler.sim.engine import Simulation
from scheduler.sim.metrics import quantile
from scheduler.sim.policies import NAMES, named
from scheduler.sim.setup import Scenario
from scheduler.sim.suite import STANDARD, bundled_profile, fleet, scaled, scenario
from scheduler.sim.workload import Phase


class Stopwatch:
    """A scheduler that is timed; only full queues count."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self.microseconds: defaultdict[str, list[float]] = defaultdict(list)
        self.is_on = False
        self.events = 0

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        began = thread_time_ns()
        actions = self._scheduler.handle(event, now)
        if self.is_on:
            self.microseconds[type(event).__name__].append((thread_time_ns() - began) / 1000)
            self.events += 1
        return actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


def measure(policies: str, servers: int = 1000, requests: int = 10_000, events: int = 30_000) -> dict[str, list[float]]:
    """Microseconds of each event, by its type, after all requests were queued."""
    base = _scenario(servers, requests)
    simulation = Simulation(base, named(policies, base), seed=1)
    watch = Stopwatch(simulation.scheduler)
    simulation.scheduler = watch  # type: ignore[assignment]
    view = watch.view
    for setup in base.servers:
        simulation.clock.at(0.0, simulation.join, setup)
    simulation.clock.at(1.0, simulation._fill_backlog, 1e9, base.workload.phases[0])
    while not view.live:
        simulation.clock.step()
    watch.is_on = True
    while watch.events < events:
        simulation.clock.step()
    return dict(watch.microseconds)


def _scenario(servers: int, requests: int) -> Scenario:
    profile = bundled_profile("flux.1-dev-h100")
    slower = scaled(profile, 2.0, "GPU B")
    gpus = [*fleet(profile, servers // 2, "a"), *fleet(slower, servers - servers // 2, "b")]
    return scenario("decision time", gpus, Phase(1e9, STANDARD, backlog=requests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", choices=NAMES, default="elastic")
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=30_000)
    options = parser.parse_args()
    found = measure(options.policies, options.servers, options.requests, options.events)
    print(f"{'event':16} {'count':>7} {'p50 µs':>9} {'p99 µs':>9} {'most µs':>9}")
    for name, values in [*sorted(found.items()), ("all", [each for some in found.values() for each in some])]:
        print(
            f"{name:16} {len(values):7} {quantile(values, 0.5):9.0f} {quantile(values, 0.99):9.0f} {max(values):9.0f}"
        )


if __name__ == "__main__":
    main()
