"""Two models on three servers, and a load that swings from one to the other: throughput against the fluid bound."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.scheduling.contenders import CONTENDERS, with_settings
from benchmarks.scheduling.results import Goal, Report, Row, table
from benchmarks.scheduling.statistics import estimate
from benchmarks.scheduling.tasks import Effort, Figures, Results, Task
from scheduler.cost.profile import Profile
from scheduler.roles.bound import capacity
from scheduler.sim.bound import fluid_rate, problem
from scheduler.sim.metrics import End, Outcome
from scheduler.sim.setup import Scenario, ServerSetup
from scheduler.sim.suite import bundled_profile
from scheduler.sim.workload import Kind, Phase, Workload, mix_of

GB = 10**9
MEMORIES = {"both models": 84, "one and a half": 66, "one model": 41}
"""What a server has room for → gigabytes; FLUX.1-dev takes 39 GB."""
SHARES = (0.9, 0.1)
"""Of the requests, for the first model, in turn."""
PHASE_SECONDS = 240.0
UNDER_WAY = 60
SERVERS = 3


def swinging(memory_gb: int, phases: int) -> Scenario:
    """The servers begin with the first model, the last one with the second."""
    one = bundled_profile("flux.1-dev-h100")
    profiles = (one, replace(one, model=replace(one.model, name="other")))
    roles = frozenset(one.roles)
    servers = [
        _server(f"gpu{number}", profile, roles if (profile is one) == (number < SERVERS) else frozenset(), memory_gb)
        for number in range(1, SERVERS + 1)
        for profile in profiles
    ]
    kinds = [Kind(profile.model.name, 1024, 1024, steps=28, model=profile.model.name) for profile in profiles]
    turns = [SHARES[number % len(SHARES)] for number in range(phases)]
    mixes = [mix_of(*kinds, weights=[share, 1 - share]) for share in turns]
    return Scenario(
        f"swinging, {memory_gb} GB",
        tuple(servers),
        Workload(tuple(Phase(PHASE_SECONDS, mix, backlog=UNDER_WAY) for mix in mixes)),
    )


def _server(machine: str, profile: Profile, roles: frozenset[object], memory_gb: int) -> ServerSetup:
    return ServerSetup(
        f"{machine}, {profile.model.name}",
        profile,
        frozenset(role for role in profile.roles if role in roles),
        memory_bytes=memory_gb * GB,
        device=machine,
    )


def tasks(effort: Effort) -> list[Task]:
    return effort.tasks(throughput, [(memory,) for memory in MEMORIES])


def throughput(memory: str, seed: int, quick: bool) -> Figures:
    scenario = swinging(MEMORIES[memory], 3 if quick else 8)
    result = with_settings(CONTENDERS["ours"], max_batch=1).run(scenario, seed)
    finished = [r for r in result.requests if r.end is End.FINISHED]
    served = possible = alone = 0.0
    for began, phase in scenario.workload.starts():
        mine = [r for r in finished if began <= r.ended < began + phase.seconds]
        asked = _served_mix(phase, mine)
        served += len(mine)
        possible += phase.seconds * fluid_rate(scenario.servers, asked)
        alone += phase.seconds * capacity(problem(scenario.servers, asked))
    return {"of bound": served / possible, "left alone": alone / possible, "moves": float(len(result.moves))}


def _served_mix(phase: Phase, finished: list[Outcome]) -> Phase:
    """The order decides what is finished, so that the mix asked for is not it."""
    counts = [sum(r.model == kind.model for r in finished) for _, kind in phase.mix]
    return replace(phase, mix=tuple((count, kind) for count, (_, kind) in zip(counts, phase.mix, strict=True)))


def report(results: Results) -> Report:
    found = Report("Two models on three servers")
    body = []
    for memory in MEMORIES:
        runs = results.of(throughput, memory)
        share, alone, moves = (estimate([run[name] for run in runs]) for name in ("of bound", "left alone", "moves"))
        found.rows.append(Row(1, "throughput / fluid bound", f"room for {memory}", share, "", Goal(">=", 0.95)))
        body.append([memory, str(share), str(alone), str(moves)])
    found.text = [
        f"Two models of FLUX.1-dev's size on {SERVERS} H100s; 90 % of requests are for the one, then for the other, "
        f"{PHASE_SECONDS:g} s each; {UNDER_WAY} are always under way. The time in which roles change counts. The bound "
        "is that of the mix that was served in each phase, with the best roles for it at once and for nothing; *left "
        "alone*: that of the roles at the start.",
        table(["a server has room for", "of the fluid bound", "left alone", "role changes"], body),
    ]
    return found
