"""What three intermediate pictures of every image cost the finished ones, and how many of them arrive. Simulated.

python -m benchmarks.previews [--seeds 20] [--output docs/results]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.scheduling.results import Goal, table
from benchmarks.scheduling.statistics import Estimate, estimate, ratio
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.sim.bound import static_rate, with_best_roles
from scheduler.sim.engine import Simulation
from scheduler.sim.metrics import Recorder
from scheduler.sim.setup import Scenario, ServerSetup
from scheduler.sim.suite import fleet
from scheduler.sim.workload import Kind, Phase, Workload, mix_of
from wire.types import REQUIRED, Role

SERVERS = 8
PREVIEWS = 3
REQUESTS = 300
"""Of one run, about."""
KINDS = {
    "flux.1-dev-h100": Kind("1024", 1024, 1024, 50),
    "tiny-shapes-cpu": Kind("256", 256, 256, 12, cfg=True),
}
LOADS = (0.4, 0.8)
"""Of what the servers can do at most without previews."""
PLACES = {"the dit's device": frozenset(REQUIRED), "devices of its own": None}
"""Where the decoder is → roles that every server holds; None: each holds one, shared out as the work needs it."""

CHEAP, ALL = Goal("<", 1.1), Goal(">=", 1.0)
HEAD = ("profile", "load", "the decoder has", "mean latency, with over without", "goal", "", "arrive", "goal", "")


class Counted:
    """A watcher that counts what reached the gateway."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None:  # noqa: ARG002
        if isinstance(event, ev.ResultTaken):
            self.seen["preview" if ".preview." in event.job else "final"] += 1

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Measured:
    profile: str
    load: float
    place: str
    cost: Estimate
    """Mean latency of finished pictures over what it is without previews."""
    arrived: Estimate
    """Share of the previews asked for."""

    def cells(self) -> tuple[str, ...]:
        """What previews cost the bundled model is told, not judged: its decoder takes a tenth of its dit's time."""
        is_judged = self.profile.startswith("flux") and self.load > 0.5
        cost = _judged(CHEAP if is_judged else None, self.cost.high)
        arrived = _judged(ALL if self.load < 0.5 else None, self.arrived.low)
        return (self.profile, f"{self.load:.0%}", self.place, str(self.cost), *cost, str(self.arrived), *arrived)


def _judged(goal: Goal | None, worst: float) -> tuple[str, str]:
    if goal is None:
        return "", ""
    return str(goal), "met" if goal.holds(worst) else "**not met**"


def run(given: Scenario, seed: int) -> tuple[float, float]:
    """Mean latency in seconds, and the share of the previews asked for that arrived."""
    recorder, counted = Recorder(given), Counted()
    Simulation(given, elastic_policies(ElasticSettings()), seed, [recorder, counted]).run()
    asked = given.workload.phases[0].mix[0][1].previews * counted.seen["final"]
    return mean(recorder.result().latencies()), counted.seen["preview"] / asked if asked else 0.0


def placed(profile: str, roles: frozenset[Role] | None, phase: Phase) -> tuple[ServerSetup, ...]:
    """Servers whose roles stay as they are."""
    servers: Sequence[ServerSetup] = fleet(profile, SERVERS)
    if roles is None:
        servers = with_best_roles(servers, phase, exclusive=True)
    return tuple(replace(server, roles=server.roles if roles is None else roles, pinned=True) for server in servers)


def scenarios(profile: str, load: float, roles: frozenset[Role] | None) -> tuple[Scenario, Scenario]:
    """Without previews and with them, the same arrivals."""
    phase = Phase(1.0, mix_of(KINDS[profile]))
    servers = placed(profile, roles, phase)
    rate = load * static_rate(servers, phase)
    phase = replace(phase, rate=rate, seconds=REQUESTS / rate)
    shown = replace(phase, mix=mix_of(replace(KINDS[profile], previews=PREVIEWS)))
    without = Scenario("without", servers, Workload((phase,)))
    return without, replace(without, name="with", workload=Workload((shown,)))


def measure(seeds: range) -> Iterator[Measured]:
    for profile in KINDS:
        for load in LOADS:
            for place, roles in PLACES.items():
                without, with_them = scenarios(profile, load, roles)
                before = [run(without, seed)[0] for seed in seeds]
                after, arrived = zip(*(run(with_them, seed) for seed in seeds), strict=True)
                yield Measured(profile, load, place, ratio(after, before), estimate(arrived))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.previews", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("out/bench"), help="folder for previews.md (%(default)s)")
    args = parser.parse_args()
    rows = []
    for measured in measure(range(args.seeds)):
        rows.append(measured.cells())
        print(*rows[-1], sep=" | ", flush=True)
    text = f"# What intermediate pictures cost\n\n{INTRODUCTION.format(seeds=args.seeds)}\n{table(HEAD, rows)}\n"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "previews.md").write_text(text, encoding="utf-8")


INTRODUCTION = f"""\
Written by `python -m benchmarks.previews --seeds {{seeds}} --output docs/results`, never by hand. Engine: the
simulator, which drives the real scheduler in virtual time: {SERVERS} servers, {PREVIEWS} previews of every picture,
about {REQUESTS} requests a run. Means over {{seeds}} paired seeds (the same arrivals with and without previews) with
their 95 % bootstrap intervals; a goal is met when the end of the interval on its bad side meets it. The load is that
of the requests without previews.
"""


if __name__ == "__main__":
    main()
