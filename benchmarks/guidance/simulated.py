"""Latency with servers that help each other over that without, at several loads. Simulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import mean

from benchmarks.scheduling.statistics import ratio
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.sim.bound import static_rate
from scheduler.sim.engine import Simulation
from scheduler.sim.metrics import Recorder, quantile
from scheduler.sim.setup import Scenario
from scheduler.sim.suite import fleet
from scheduler.sim.workload import Kind, Phase, Workload, mix_of
from wire.types import REQUIRED

SERVERS = 4
REQUESTS = 200
"""Of one run, about."""
PROFILES = {"sd3-l20": (1024, 28), "tiny-shapes-cpu": (256, 12), "qwen-image-2512-h100": (1024, 40)}
"""Side of the picture, and steps."""
LOADS = (0.1, 0.5, 0.8, 0.95)
"""Of what the servers can do at most."""
HEAD = ("profile", "load", "guided, mean", "guided, p99", "others, mean", "others, p99")

Latencies = dict[bool, list[float]]
"""Of guided requests, and of the others."""


def scenario(profile: str, load: float) -> Scenario:
    """Half of the requests are guided; those that are not have a step less, which tells them apart."""
    side, steps = PROFILES[profile]
    guided = Kind("guided", side, side, steps, cfg=True)
    phase = Phase(1.0, mix_of(guided, replace(guided, name="plain", steps=steps - 1, cfg=False)))
    servers = tuple(
        replace(server, roles=frozenset(REQUIRED), pinned=True, shares_guidance=True, report_seconds=3.0)
        for server in fleet(profile, SERVERS)
    )
    rate = load * static_rate(servers, phase)
    phase = replace(phase, rate=rate, seconds=REQUESTS / rate)
    return Scenario(f"{profile} at {load:.0%}", servers, Workload((phase,)))


def latencies(given: Scenario, seed: int, *, share: bool) -> Latencies:
    recorder = Recorder(given)
    Simulation(given, elastic_policies(ElasticSettings(share_guidance=share)), seed, [recorder]).run()
    found: Latencies = {True: [], False: []}
    steps = max(kind.steps for kind in given.kinds())
    for outcome in recorder.result().finished():
        found[outcome.kind.endswith(f"/{steps}")].append(outcome.latency)
    return found


def rows(seeds: range) -> Iterator[tuple[str, ...]]:
    for profile in PROFILES:
        for load in LOADS:
            given = scenario(profile, load)
            runs = [[latencies(given, seed, share=share) for seed in seeds] for share in (True, False)]
            ratios = [
                ratio(*([of(run[is_guided]) for run in each] for each in runs))
                for is_guided in (True, False)
                for of in (mean, lambda values: quantile(values, 0.99))
            ]
            yield (profile, f"{load:.0%}", *map(str, ratios))
