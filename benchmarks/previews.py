"""What three intermediate pictures of every image cost the finished ones, and how many of them arrive. Simulated.

python -m benchmarks.previews [SEEDS]
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from statistics import mean

from scheduler import events as ev
from scheduler.actions import Action
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.sim.engine import Simulation
from scheduler.sim.metrics import Recorder
from scheduler.sim.setup import Scenario
from scheduler.sim.suite import fleet, mix_of, scenario
from scheduler.sim.workload import Kind, Phase
from wire.types import Role

PREVIEWS = 3
SECONDS = 900.0
KINDS = {
    "flux.1-dev-h100": Kind("1024", 1024, 1024, 50),
    "tiny-shapes-cpu": Kind("256", 256, 256, 12, cfg=True),
}
LOADS = (0.4, 0.8)


class Counted:
    """A watcher that counts what was shown and what reached the gateway."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None:  # noqa: ARG002
        if isinstance(event, ev.ResultTaken):
            self.seen["preview" if ".preview." in event.job else "final"] += 1

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None: ...


def run(given: Scenario, seed: int) -> tuple[float, float]:
    """Mean latency in seconds, and the share of the previews asked for that arrived."""
    recorder, counted = Recorder(given), Counted()
    Simulation(given, elastic_policies(ElasticSettings()), seed, [recorder, counted]).run()
    asked = given.workload.phases[0].mix[0][1].previews * counted.seen["final"]
    return mean(recorder.result().latencies()), counted.seen["preview"] / asked if asked else 0.0


def scenarios(profile: str, load: float, *, shared: bool) -> tuple[Scenario, Scenario]:
    """Without previews and with them, the same arrivals."""
    plain = KINDS[profile]
    servers = fleet(profile, 8)
    if shared:
        servers = [replace(server, roles=frozenset(Role), pinned=True) for server in servers]
    without = scenario("without", servers, Phase(SECONDS, mix_of(plain)), loads=load)
    phase = replace(without.workload.phases[0], mix=mix_of(replace(plain, previews=PREVIEWS)))
    return without, replace(without, workload=replace(without.workload, phases=(phase,)))


def main() -> None:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    print(f"8 simulated servers, {SECONDS:g} s, {len(seeds)} paired seeds, {PREVIEWS} previews of every image")
    print(f"{'profile':18} {'load':>5}  {'servers hold':14} {'mean latency':>13} {'previews that arrive':>21}")
    for profile in KINDS:
        for load in LOADS:
            for shared in (False, True):
                without, with_them = scenarios(profile, load, shared=shared)
                pairs = [(run(without, seed)[0], *run(with_them, seed)) for seed in seeds]
                ratio = mean(after / before for before, after, _ in pairs)
                arrived = mean(share for _, _, share in pairs)
                held = "every role" if shared else "the best roles"
                print(f"{profile:18} {load:5.0%}  {held:14} {ratio:12.3f}x {arrived:20.1%}")


if __name__ == "__main__":
    main()
