"""Row 16: servers that are replaced one after the other, and hand their denoising over, against finishing it first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate, ratio
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from benchmarks.scheduling.twin import FOR_EVER, Twin
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.sim.bound import at_load
from scheduler.sim.metrics import Recorder, mean, quantile
from scheduler.sim.setup import Leave, Scenario, ServerSetup
from scheduler.sim.suite import bundled_profile
from scheduler.sim.workload import Kind, Phase, Workload
from wire.types import REQUIRED, Role, ServerId

SERVERS = 4
APART = 60.0
"""Seconds between two that leave."""
ROLES = {
    "every role": (frozenset(REQUIRED),) * SERVERS,
    "dit alone": (frozenset({Role.DIT}),) * SERVERS,
}
"""Of those that leave; where they hold the dit alone, another server has the other roles and stays."""
CASES = [(roles, steps, load) for roles in ROLES for steps in ("50 steps", "4 steps") for load in ("40 %", "70 %")]
WAYS = {"handed over": True, "finished": False}


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(replaced, [(*case, way) for case in CASES for way in WAYS])


@dataclass(slots=True)
class _Departures:
    """Watches who leaves, and how long that takes."""

    began: dict[ServerId, float] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)
    moves: int = 0

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None:  # noqa: ARG002
        match event:
            case ev.ServerLeaving(server=server):
                self.began[server] = now
            case ev.ServerLost(server=server) if server in self.began:
                self.took.append(now - self.began.pop(server))
            case ev.JobHandedOver():
                self.moves += 1
            case _:
                pass

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None: ...


def replaced(roles: str, steps: str, load: str, way: str, seed: int, quick: bool) -> Figures:
    """Each server leaves once; at that moment another takes its place."""
    scenario = _scenario(roles, int(steps.split()[0]), int(load.split()[0]) / 100, rounds=1 if quick else 3)
    settings = ElasticSettings(max_requests=10**6, elastic_roles=False, migration=WAYS[way])
    recorder, departures = Recorder(scenario), _Departures()
    Twin(scenario, elastic_policies(settings, [scenario.servers[0].profile]), seed, [recorder, departures]).run()
    latencies = recorder.result().latencies()
    if len(departures.took) != len(scenario.faults):
        raise AssertionError(f"{len(departures.took)} of {len(scenario.faults)} servers have left")
    return {
        "leaving": mean(departures.took),
        "longest": max(departures.took),
        "mean": mean(latencies),
        "p99": quantile(latencies, 0.99),
        "moves": float(departures.moves),
    }


def _scenario(roles: str, steps: int, load: float, rounds: int) -> Scenario:
    profile, count = bundled_profile("flux.1-dev-h100"), SERVERS * rounds
    ends = [APART * (number + 1) for number in range(count)]
    first = [ServerSetup(f"s{n}", profile, held, pinned=True) for n, held in enumerate(ROLES[roles])]
    later = [replace(first[n % SERVERS], name=f"s{n + SERVERS}", joins_at=end) for n, end in enumerate(ends)]
    rest = [] if roles == "every role" else [ServerSetup("rest", profile, frozenset({Role.ENCODER, Role.DECODER}))]
    kind = Kind("1024", 1024, 1024, steps, deadline=FOR_EVER)
    phase = at_load(load, (*first, *rest), Phase(1.0, ((1.0, kind),)))
    workload = Workload((replace(phase, seconds=ends[-1] + APART),))
    faults = tuple(Leave(end, f"s{number}") for number, end in enumerate(ends))
    return Scenario(f"leaving: {roles}", (*first, *rest, *later), workload, faults)


def report(results: Results) -> Report:
    found = Report("Servers that leave")
    body = []
    for case in CASES:
        handed, finished = (results.of(replaced, *case, way) for way in WAYS)
        label = f"FLUX.1-dev, H100, 1024², {', '.join(case)}"
        sooner, latency = (
            ratio([run[what] for run in handed], [run[what] for run in finished]) for what in ("leaving", "mean")
        )
        found.rows.append(Row(16, "seconds until gone / without handing over", label, sooner, "", Goal("<=", 1.0)))
        found.rows.append(Row(16, "mean latency / without handing over", label, latency, "", Goal("<=", 1.01)))
        seconds = [str(estimate([run[what] for run in runs])) for what in ("leaving",) for runs in (handed, finished)]
        body.append([label, *seconds, str(estimate([run["moves"] for run in handed]))])
    found.text = [
        f"{SERVERS} servers; every {APART:g} s the one that is there longest is told to leave, and another comes. It is"
        " gone once its jobs are done or handed over and its outputs fetched. Load in multiples of what can be served.",
        table(["case", "seconds until gone, handed over", "finished first", "jobs that moved"], body),
    ]
    return found
