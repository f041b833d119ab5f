"""What ``plan`` predicts, against simulations that it has not seen: five models, fleets of three sizes.

python -m benchmarks.plan [--quick] [PROFILE …]

For each fleet, at 70 % of its fluid bound: the mean latency that the planner's forecast gives (its seeds), and that of
simulations with other seeds, twice as long; and the largest throughput, the planner's fluid bound against what a fleet
finishes that has work waiting all the time. The scheduler that decides is the real one in both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from scheduler.cost.profile import Profile
from scheduler.sim.bound import at_load, fluid_rate, with_best_roles
from scheduler.sim.engine import simulate
from scheduler.sim.metrics import mean
from scheduler.sim.planner import LEAST_REQUESTS, SURE, Slo, forecast
from scheduler.sim.policies import named
from scheduler.sim.setup import Scenario, ServerSetup
from scheduler.sim.suite import bundled_profile, fleet
from scheduler.sim.workload import Kind, Phase, Workload

PROFILES = ("flux.1-dev-h100", "qwen-image-2512-h100", "sd3-l20", "tiny-shapes-cpu", "wan2.2-a14b-a10")
FLEETS = (2, 4, 8)
LOAD = 0.7
LARGEST = 0.1
"""Share by which a prediction may be off."""
REPORTS = 2.0
"""Seconds between two reports of a job's progress: minutes of video would make a thousand."""
SEEDS = (101, 102, 103, 104)
BACKLOG = 64
"""Requests under way while throughput is measured."""


@dataclass(frozen=True, slots=True)
class Row:
    model: str
    servers: int
    latency: tuple[float, float]
    """Predicted, simulated."""
    throughput: tuple[float, float]

    @property
    def off(self) -> tuple[float, float]:
        return self.latency[0] / self.latency[1] - 1, self.throughput[0] / self.throughput[1] - 1

    def __str__(self) -> str:
        late, through = self.off
        return (
            f"{self.model:26} {self.servers:>7}  {self.latency[0]:>9.3f} {self.latency[1]:>9.3f} {late:>+7.1%}  "
            f"{self.throughput[0]:>9.4f} {self.throughput[1]:>9.4f} {through:>+7.1%}"
        )


def rows(effort: float = 1.0, profiles: Sequence[str] = PROFILES) -> Iterator[Row]:
    for name in profiles:
        for count in FLEETS:
            yield measure(bundled_profile(name), count, effort)


def measure(profile: Profile, count: int, effort: float = 1.0) -> Row:
    side = 256 if profile.model.name == "tiny-shapes" else 480 if profile.model.latent_frames > 1 else 1024
    kind = Kind("request", side, side, min(profile.model.default_steps, 25), deadline=1e9)
    servers = [replace(server, report_seconds=REPORTS) for server in fleet(profile, count)]
    phase = at_load(LOAD, servers, Phase(1.0, ((1.0, kind),)))
    phase = replace(phase, seconds=LEAST_REQUESTS / phase.rate * effort)
    placed = with_best_roles(servers, phase)
    predicted = forecast(placed, phase, Slo(1e9), seeds=SURE)
    longer = replace(phase, seconds=2 * phase.seconds)
    seen: list[float] = []
    for seed in SEEDS:
        scenario = Scenario("plan", placed, Workload((longer,)))
        seen += simulate(scenario, named("elastic", scenario), seed).latencies()
    rate = fluid_rate(servers, phase)
    return Row(profile.model.name, count, (predicted.mean, mean(seen)), (rate, _throughput(placed, kind, rate, effort)))


def _throughput(placed: tuple[ServerSetup, ...], kind: Kind, rate: float, effort: float) -> float:
    """Once every role has work."""
    seconds = max(200, 600 * effort) / rate
    scenario = Scenario("backlog", placed, Workload((Phase(seconds, ((1.0, kind),), backlog=BACKLOG),)))
    return simulate(scenario, named("elastic", scenario), 101).throughput(0.2 * seconds, seconds)


def main() -> int:
    effort = 0.5 if "--quick" in sys.argv else 1.0
    print(f"{'model':26} servers  {'mean latency at 70 %, s':^27}  {'most requests/s':^27}")
    print(f"{'':26} {'':7}  {'predicted':>9} {'simulated':>9} {'off':>7}  {'predicted':>9} {'simulated':>9} {'off':>7}")
    worst = [0.0, 0.0]
    for row in rows(effort, [name for name in sys.argv[1:] if name != "--quick"] or PROFILES):
        print(row, flush=True)
        worst = [max(most, abs(off)) for most, off in zip(worst, row.off, strict=True)]
    print(f"farthest off: latency {worst[0]:.1%}, throughput {worst[1]:.1%} (at most {LARGEST:.0%} wanted)")
    return int(max(worst) > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
