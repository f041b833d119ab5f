"""Row 15: jobs that compute together, against one by one: how much more can be served, and what it costs below that."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.highest import highest as highest_rate
from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import Estimate, estimate, ratio
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from benchmarks.scheduling.twin import FOR_EVER, run
from scheduler.cost.profile import Profile
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.sim.bound import at_load
from scheduler.sim.metrics import quantile
from scheduler.sim.setup import Scenario, ServerSetup
from scheduler.sim.suite import STANDARD, bundled_profile
from scheduler.sim.workload import Kind, Mix, Phase, Workload, mix_of
from wire.types import Role

TOGETHER = 8
SLO = 3.0
"""Times as long as the request takes when it is alone."""
FIRST = 0.7
"""Where the search for the highest rate begins."""
BELOW = ("30 %", "50 %", "70 %")
"""Of what the denoisers can serve one by one."""
WITHOUT_LIMIT = 10**6

EVERYWHERE = ", every role"
"""Ends the name of a case whose servers hold all roles, where encoder and decoder jobs are let in between two steps."""
CASES: dict[str, tuple[str, Mix]] = {
    "FLUX.1-dev, H100, 512²": ("flux.1-dev-h100", mix_of(Kind("512", 512, 512, 25))),
    "FLUX.1-dev, H100, 1024²": ("flux.1-dev-h100", mix_of(Kind("1024", 1024, 1024, 25))),
    "FLUX.1-dev, L20, 256²": ("flux.1-dev-l20", mix_of(Kind("256", 256, 256, 25))),
    "Qwen-Image, H100, 512²": ("qwen-image-2512-h100", mix_of(Kind("512", 512, 512, 25))),
    "FLUX.1-dev, H100, standard mix": ("flux.1-dev-h100", STANDARD),
    f"FLUX.1-dev, H100, 512²{EVERYWHERE}": ("flux.1-dev-h100", mix_of(Kind("512", 512, 512, 25))),
    f"Qwen-Image, H100, 512²{EVERYWHERE}": ("qwen-image-2512-h100", mix_of(Kind("512", 512, 512, 25))),
}
GOALS = {"FLUX.1-dev, H100, 512²": Goal(">=", 1.4), "Qwen-Image, H100, 512²": Goal(">=", 1.4)}
"""The others have next to nothing to gain, or a mix of sizes: there it is only not to be worse."""


def tasks(effort: Effort) -> list[Task]:
    rates = effort.tasks(highest, [(case,) for case in CASES])
    return [*rates, *effort.tasks(below, [(case, load) for case in CASES for load in BELOW])]


def highest(case: str, seed: int, quick: bool) -> Figures:
    """The highest load at which p99 keeps the SLO: shared, and one by one."""
    found = {
        way: highest_rate(lambda load, t=together: _p99(case, load, t, seed, quick) <= SLO, FIRST)
        for way, together in _WAYS.items()
    }
    return {**found, "ratio": found["shared"] / found["alone"]}


def below(case: str, load: str, seed: int, quick: bool) -> Figures:
    fraction = int(load.split()[0]) / 100
    return {way: _p99(case, fraction, together, seed, quick) for way, together in _WAYS.items()}


_WAYS = {"shared": TOGETHER, "alone": 1}


def _p99(case: str, load: float, together: int, seed: int, quick: bool) -> float:
    """Latency over that of the request when it is alone."""
    scenario = _scenario(case, load, together, 250 if quick else 600)
    settings = ElasticSettings(max_requests=WITHOUT_LIMIT, elastic_roles=False)
    result = run(scenario, elastic_policies(settings, [scenario.servers[0].profile]), seed)
    return quantile([request.slowdown for request in result.requests], 0.99)


def _scenario(case: str, load: float, together: int, requests: int) -> Scenario:
    name, mix = CASES[case]
    profile = bundled_profile(name)
    servers = _everywhere(profile, together) if case.endswith(EVERYWHERE) else _split(profile, together)
    phase = at_load(load, servers, Phase(1.0, tuple((weight, replace(k, deadline=FOR_EVER)) for weight, k in mix)))
    return Scenario(case, servers, Workload((replace(phase, seconds=requests / phase.rate),)))


def _split(profile: Profile, together: int) -> tuple[ServerSetup, ...]:
    dits = [ServerSetup(f"dit{i}", profile, frozenset({Role.DIT}), pinned=True, together=together) for i in (1, 2)]
    return (*dits, ServerSetup("rest", profile, frozenset({Role.ENCODER, Role.DECODER}), pinned=True))


def _everywhere(profile: Profile, together: int) -> tuple[ServerSetup, ...]:
    return tuple(ServerSetup(f"all{i}", profile, pinned=True, together=together) for i in (1, 2))


def report(results: Results) -> Report:
    found = Report("Computing together")
    body = []
    for case in CASES:
        gain = estimate(results.values(highest, case, figure="ratio"))
        measure = f"highest rate with p99 <= {SLO:g} × unloaded / that of one by one"
        found.rows.append(Row(15, measure, case, gain, "", GOALS.get(case, Goal(">=", 1.0))))
        for load in BELOW:
            found.rows.append(
                Row(15, "p99 / that of one by one", f"{case}, {load}", _tail(results, case, load), "", Goal("<=", 1.0))
            )
        body.append([case, *(str(estimate(results.values(highest, case, figure=way))) for way in _WAYS)])
    found.text = [
        "Two servers that hold the dit alone and allow eight jobs at once, one with encoder and decoder; where a case "
        'says "every role", two that hold all, and no other. Poisson arrivals of requests that may be fast. Loads are '
        "in multiples of what can be served one by one; latency over that of the idle request. What company costs is "
        "the profiles' (`batch_marginal`, mostly assumed).",
        table(["case", "highest load, together", "one by one"], body),
    ]
    return found


def _tail(results: Results, case: str, load: str) -> Estimate:
    shared, alone = (results.values(below, case, load, figure=way) for way in _WAYS)
    return ratio(shared, alone)
