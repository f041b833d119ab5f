"""Short random scenarios full of faults, random policies, and a witness who checks everything after every event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from random import Random
from typing import get_args

from scheduler import actions as do
from scheduler import events as ev
from scheduler import invariants
from scheduler.actions import Action
from scheduler.attempts import AttemptEvent
from scheduler.core import Scheduler
from scheduler.cost.model import CostModel
from scheduler.cost.profile import Profile, TensorSpec
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.roles import ElasticRoles
from scheduler.elastic.settings import ElasticSettings
from scheduler.policy import AdmitUpTo, Downstream, Policies
from scheduler.roles.problem import Problem
from scheduler.roles.problem import Server as PlannedServer
from scheduler.roles.solver import Plan
from scheduler.sim.bound import problem as bound_problem
from scheduler.sim.engine import Simulation
from scheduler.sim.metrics import Digest
from scheduler.sim.setup import (
    EVERYBODY,
    GATEWAY,
    Chances,
    Fault,
    Freeze,
    Kill,
    Leave,
    Network,
    Scenario,
    ServerSetup,
    SlowDown,
    Unreachable,
)
from scheduler.sim.suite import bundled_profile
from scheduler.sim.workload import Kind, Phase, Workload
from scheduler.state import Attempt, Job, Request, Server
from scheduler.transitions import JobState
from scheduler.view import View
from wire.types import REQUIRED, RequestId, Role, ServerId

PROFILE = bundled_profile("tiny-shapes-cpu")
MASK = TensorSpec(Role.DECODER, "mask_overlay", "uint8", (1, "latent_height", "latent_width"))
"""Some models hand something from the encoder straight to the decoder."""
E, D, V = REQUIRED
OTHER = replace(PROFILE, model=replace(PROFILE.model, name="other"))
SHARED = 0.3
"""Share of the schedules with two models."""
ROLE_SETS = tuple(map(frozenset, ((E, D, V), (E, D), (D, V), (E, V), (E,), (D,), (V,))))
SECONDS = 10.0
REPORTS = (ev.LimitsRaised, ev.ServerLeaving, ev.RolesReady, ev.RolesFailed, ev.RolesWarm, *get_args(AttemptEvent))
ELASTIC = 0.2
"""Share of the schedules with the policies of ``scheduler.elastic``; the others have wilder ones."""


def random_scenario(seed: int) -> Scenario:
    """In some of them servers may serve another model as well, which half of the requests are for."""
    scenario, rng = _of_one_model(seed), Random(f"models/{seed}")
    if rng.random() > SHARED:
        return scenario
    names = PROFILE.model.name, OTHER.model.name
    (phase,) = scenario.workload.phases
    mix = tuple((weight, replace(kind, model=name)) for weight, kind in phase.mix for name in names)
    return replace(
        scenario,
        servers=tuple(each for server in scenario.servers for each in _with_other(server, rng)),
        workload=Workload((replace(phase, mix=mix),)),
    )


def guided_scenario(seed: int) -> Scenario:
    """Guided requests, few enough for some servers to have nothing to do, which then help others."""
    scenario, rng = _of_one_model(seed), Random(f"guidance/{seed}")
    (phase,) = scenario.workload.phases
    mix = tuple((weight, replace(kind, cfg=rng.random() < 0.9, deadline=30.0)) for weight, kind in phase.mix)
    servers = tuple(_helpful(scenario.servers[0], f"s{index}", rng) for index in range(rng.randint(2, 5)))
    faults = [fault for fault in scenario.faults if fault.server in {server.name for server in servers}]
    return replace(
        scenario,
        servers=servers,
        workload=Workload((replace(phase, mix=mix, rate=rng.choice((0.3, 1.0))),)),
        faults=tuple(fault for fault in faults if not isinstance(fault, Unreachable)),
        chances=scenario.chances if rng.random() < 0.5 else Chances(),
    )


def _helpful(like: ServerSetup, name: str, rng: Random) -> ServerSetup:
    roles = ROLE_SETS[0] if rng.random() < 0.7 else like.roles | {D}
    software = "a" if rng.random() < 0.9 else "b"
    helps = rng.random() < 0.95
    return replace(like, name=name, roles=roles, software=software, shares_guidance=helps, joins_at=0.0, pinned=False)


def _with_other(server: ServerSetup, rng: Random) -> list[ServerSetup]:
    kind = rng.randrange(4)
    if kind == 0 and server.name != "s0":
        return [server]
    profile = replace(server.profile, model=OTHER.model)
    other = replace(server, name=f"{server.name}.2", profile=profile, roles=rng.choice((frozenset(), *ROLE_SETS)))
    if kind == 1:
        return [server, other]  # on a machine of its own
    return [replace(each, device=server.name) for each in (server, other)]


def _of_one_model(seed: int) -> Scenario:
    rng = Random(f"scenario/{seed}")
    profile = _with_masks(PROFILE) if rng.random() < 0.3 else PROFILE
    servers = tuple(_server(i, profile, rng) for i in range(rng.randint(1, 5)))
    mix = tuple((rng.uniform(0.2, 1), _kind(i, rng)) for i in range(rng.randint(1, 3)))
    phase = Phase(SECONDS, mix, rate=rng.uniform(0.1, 0.9), cv=rng.choice((0.0, 1.0, 3.0)))
    return Scenario(
        name=f"schedule {seed}",
        servers=servers,
        workload=Workload((phase,)),
        faults=(
            *(_fault(rng.choice(servers).name, rng) for _ in range(rng.randint(0, 5))),
            *(_partition(servers, rng) for _ in range(rng.choice((0, 0, 1, 3)))),
        ),
        network=Network(
            bandwidth=10 ** rng.uniform(5, 9), liveness=1.0, fetch_timeout=0.5, detection=rng.uniform(0, 1)
        ),
        chances=Chances(*(rng.choice((0.0, 0.0, 0.1, 0.4)) for _ in range(4))),
        noise=rng.choice((0.0, 0.3)),
    )


def _with_masks(profile: Profile) -> Profile:
    encoder = profile.roles[Role.ENCODER]
    return replace(profile, roles=profile.roles | {Role.ENCODER: replace(encoder, outputs=(*encoder.outputs, MASK))})


def _server(index: int, profile: Profile, rng: Random) -> ServerSetup:
    return ServerSetup(
        f"s{index}",
        profile,
        roles=ROLE_SETS[0] if rng.random() < 0.4 else rng.choice(ROLE_SETS),
        joins_at=rng.choice((0.0, 0.0, rng.uniform(0, 10))),
        slowness=rng.choice((1.0, 0.3, 3.0)),
        store_bytes=rng.choice((None, None, 60_000_000)),
        pinned=rng.random() < 0.1,
        software=rng.choice(("a", "a", "b", "")),
        together=rng.choice((1, 3, 8)),
    )


def _kind(index: int, rng: Random) -> Kind:
    side = rng.choice((128, 256, 512))
    return Kind(
        f"k{index}",
        side,
        side,
        steps=rng.randint(1, 12),
        images=rng.choice((1, 1, 2, 3, 5)),
        previews=rng.choice((0, 0, 1, 3)),
        tenant=rng.choice(("", "a")),
        priority=rng.choice((0, 0, 1)),
        exact=rng.random() < 0.2,
        deadline=rng.choice((0.5, 5.0, 30.0)),
        patience=rng.choice((inf, inf, 3.0)),
    )


def _fault(server: str, rng: Random) -> Fault:
    at = rng.uniform(0, SECONDS)
    match rng.randrange(6):
        case 0:
            return Leave(at, server)
        case 1:
            return SlowDown(at, server, rng.choice((0.5, 5.0)))
        case 2:
            return Freeze(at, server, rng.choice((0.4, 2.0, 6.0)))
        case _:
            return Kill(at, server, restart_after=rng.choice((None, 0.01, 2.0)))


def _partition(servers: Sequence[ServerSetup], rng: Random) -> Unreachable:
    at = rng.choice((0.0, rng.uniform(0, SECONDS)))
    some = rng.sample([GATEWAY, *(server.name for server in servers)], rng.randint(1, len(servers)))
    fetchers = rng.choice(([EVERYBODY], some))
    return Unreachable(at, rng.choice(servers).name, frozenset(fetchers), at + rng.choice((0.3, 3.0, inf)))


class Together:
    """Up to four of a kind compute together, whatever it costs."""

    def most(self, job: Job, server: Server, view: View) -> int:
        return 4

    def joins(self, job: Job, candidates: Sequence[Server], view: View, now: float) -> Server | None:
        return candidates[-1]

    def makes_way(
        self, job: Job, following: Sequence[Job], candidates: Sequence[Server], view: View, now: float
    ) -> Server | None:
        return candidates[0]


class Impatient:
    """Every job without a slot interrupts the longest one that runs."""

    def __init__(self, keep_seconds: float = 0.0):
        self.keep_seconds = keep_seconds

    def victim(self, job: Job, view: View, now: float) -> Server | None:
        holders = view.serving(job.request.spec.model, job.spec.role).values()
        able = [s for s in holders if s.occupied() <= 2 and self._runs(s)]
        return max(able, key=lambda server: server.remaining(now), default=None)

    def may_yield(self, server: Server, job: Job, view: View, now: float) -> bool:
        return self.victim(job, view, now) is server

    def lets_in(self, server: Server, preview: Job, view: View, now: float) -> bool:
        return server.running() is not None and server.may_run(preview.spec.role)

    @staticmethod
    def _runs(server: Server) -> bool:
        states = [attempt.job.state for attempt in server.attempts.values()]
        return JobState.RUNNING in states and JobState.PAUSED not in states


class Choosy:
    """Has some finished pictures wait for some intermediate ones."""

    def __init__(self, rng: Random):
        self._rng = rng

    def keeps(self, preview: Job, view: View, now: float) -> bool:
        return self._rng.random() < 0.7


class Restless:
    """Sends dit jobs on as chance has it."""

    def __init__(self, rng: Random):
        self._rng = rng

    def worth(self, attempt: Attempt, view: View, now: float) -> str:
        chance = 0.8 if Role.DIT not in attempt.server.serving else 0.1
        return "a whim" if self._rng.random() < chance else ""


class Helpful:
    """Whoever can help does."""

    def helper(self, attempt: Attempt, able: Iterable[Server], view: View) -> tuple[Server, float] | None:
        server = next(iter(able), None)
        return None if server is None else (server, 0.5)


class Fickle:
    """Wants other roles every second."""

    period_seconds = 1.0

    def __init__(self, scenario: Scenario, rng: Random):
        self._scenario = scenario
        self._rng = rng
        self._servers: tuple[ServerId, ...] = ()

    def arrived(self, request: Request, view: View, now: float) -> None: ...

    def switched(
        self, server: Server, added: frozenset[Role], load_seconds: float, now: float, *, from_host: bool
    ) -> None: ...

    def likely(self) -> Sequence[tuple[ServerId, frozenset[Role], str]]:
        """Sometimes other roles than those that it orders."""
        servers = list(self._servers)
        return [(self._rng.choice(servers), self._rng.choice(ROLE_SETS), "a whim")] if servers else []

    def consider(self, view: View, now: float) -> tuple[Problem, str]:
        phase = self._scenario.workload.phases[0]
        base = bound_problem(self._scenario.servers[:1], phase)  # whatever comes of it is not used
        cls = base.servers[0].cls
        members = tuple(PlannedServer(server, cls, frozenset()) for server in view.servers)
        return Problem(base.classes, members, base.demand), "a whim"

    def accept(self, plan: Plan, view: View, now: float) -> Sequence[tuple[ServerId, frozenset[Role], str]]:
        self._servers = tuple(view.servers)
        return [(server, self._rng.choice(ROLE_SETS), "a whim") for server in view.servers]


def random_policies(scenario: Scenario, seed: int) -> Policies:
    rng = Random(f"policies/{seed}")
    if rng.random() < ELASTIC:
        settings = ElasticSettings(max_requests=rng.choice((3, 1000)), max_batch=rng.choice((1, 4)))
        return elastic_policies(settings, [PROFILE, OTHER])
    policies = Policies(
        admission=AdmitUpTo(rng.choice((3, 1000))),
        placement=Downstream(rng.choice((0.0, 0.5, inf))),
        cost=CostModel([PROFILE, OTHER] if rng.random() < 0.8 else []),
        max_failures=rng.choice((1, 3)),
        max_losses=rng.choice((1, 3)),
    )
    if rng.random() < 0.6:
        policies.batching = Together()
    if rng.random() < 0.4:
        policies.preemption = Impatient(rng.choice((0.0, 0.05, 1.0)))
    if rng.random() < 0.6:
        policies.migration = Restless(Random(f"migration/{seed}"))
    if rng.random() < 0.4:
        policies.roles = Fickle(scenario, rng)
    policies.guidance = Helpful()
    if rng.random() < 0.6:
        policies.previews = Choosy(Random(f"previews/{seed}"))
    return policies


def check_everybody_stands_somewhere(scheduler: Scheduler, now: float) -> None:
    for request in scheduler.view.live:
        standing = scheduler.standing(request, now)
        assert standing is not None
        assert standing.ahead is None or standing.ahead >= 0
        assert isfinite(standing.seconds_left)


@dataclass
class Witness:
    """Checks the invariants after every event, and that every admitted request ends once."""

    simulation: Simulation | None = None
    idle_is_wrong: bool = True
    digest: Digest = field(default_factory=Digest)
    events: int = 0
    is_amid: bool = False
    """The state is already that after further events, which are told next."""
    open: set[RequestId] = field(default_factory=set)
    ended: dict[RequestId, str] = field(default_factory=dict)
    helps: int = 0

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None:
        assert self.simulation is not None
        self.events += 1
        self.digest.decided(event, actions, now)
        if isinstance(event, ev.RequestCancelled):
            self._end(event.request, "cancelled")
        for action in actions:
            match action:
                case do.Admit(request=request):
                    assert request not in self.open | self.ended.keys()
                    self.open.add(request)
                case do.Finish(request=request) | do.Fail(request=request):
                    self._end(request, getattr(action, "code", "finished"))
                case do.Help():
                    self.helps += 1
        if self.is_amid:
            return
        view = self.simulation.scheduler.view
        assert set(view.live) == self.open
        invariants.check(view)
        if self.idle_is_wrong:
            check_nobody_idles(view)
        if self.events % 16 == 0:
            check_everybody_stands_somewhere(self.simulation.scheduler, now)

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None: ...

    def _end(self, request: RequestId, how: str) -> None:
        if request not in self.ended and request in self.open:
            self.open.remove(request)
            self.ended[request] = how
        else:
            assert how == "cancelled", f"{request} was {self.ended.get(request)}, now {how}"


class Bunched(Simulation):
    """What servers report within a moment is decided on together, as by a gateway that has much to read."""

    def __init__(self, scenario: Scenario, policies: Policies, seed: int, witness: Witness):
        super().__init__(scenario, policies, seed, [witness])
        self._witness = witness
        self._moments = Random(f"moments/{seed}")
        self._reported: list[ev.Event] = []

    def post(self, event: ev.Event) -> None:
        if not isinstance(event, REPORTS):
            self._decide()
            super().post(event)
            return
        self._reported.append(event)
        if len(self._reported) == 1:
            self.clock.after(self._moments.choice((0.0, 0.01, 0.3)), self._decide)

    def _decide(self) -> None:
        events, self._reported = self._reported, []
        if not events:
            return
        told = self.scheduler.handle_together(events, self.clock.now)
        for number, (event, actions) in enumerate(zip(events, told, strict=True), 1):
            self._witness.is_amid = number < len(events)
            self._witness.decided(event, actions, self.clock.now)
        for action in [action for actions in told for action in actions]:
            self._do(action)
        self._wake()


def run(seed: int, *, bunched: bool = False, guided: bool = False) -> Witness:
    """One schedule to its end, and on until nothing of it can be left anywhere."""
    scenario = guided_scenario(seed) if guided else random_scenario(seed)
    policies = random_policies(scenario, seed)
    is_elastic = isinstance(policies.roles, ElasticRoles)
    witness = Witness(idle_is_wrong=not is_elastic)  # it may keep a job from a slow server
    simulation = Simulation(scenario, policies, seed, [witness])
    if bunched:
        simulation = Bunched(scenario, policies, seed, witness)
    witness.simulation = simulation
    spoil(simulation.scheduler)
    if not is_elastic:
        simulation.solve = unchanged
    simulation.run()
    simulation.settle(15.0)
    assert not witness.open
    check_nothing_left(simulation)
    return witness


def spoil(scheduler: Scheduler) -> None:
    """Every other error that servers report is NaN."""
    handle_together = scheduler.handle_together

    def spoilt(event: ev.Event) -> ev.Event:
        if isinstance(event, ev.JobFailed) and event.code == "engine_error" and event.epoch.counter % 2:
            return replace(event, code="non_finite")
        return event

    def handle_spoilt(events: Sequence[ev.Event], now: float) -> list[list[Action]]:
        return handle_together([spoilt(event) for event in events], now)

    scheduler.handle_together = handle_spoilt  # type: ignore[method-assign]


def unchanged(problem: Problem) -> Plan:
    """The random policies make their own moves."""
    return Plan({}, 1.0, 1.0, 1.0, problem)


def check_nobody_idles(view: View) -> None:
    """No server without work while a job that it could run waits, and none waits for another than that server."""
    wary = {(job.request.spec.model, job.spec.role) for job in view.jobs.values() if job.queued_key and job.avoid}
    for (model, role), queue in view.queues.items():
        if len(queue) and (model, role) not in wary:
            idle = [s.id for s in view.serving(model, role).values() if s.is_idle and s.may_run(role)]
            assert not idle, f"{idle} have nothing to do while {len(queue)} {role} jobs wait"


def check_nothing_left(simulation: Simulation) -> None:
    view = simulation.scheduler.view
    assert not view.jobs
    assert not any(len(queue) for queue in view.queues.values())
    for server in view.servers.values():
        assert not server.attempts, f"{server.id} still has {list(server.attempts)}"
        assert not server.holds, f"{server.id} still holds {list(server.holds)}"
        assert not server.handed_over, f"{server.id} still holds {list(server.handed_over)}"
    for simulated in simulation.servers.values():
        assert simulated.is_empty, f"{simulated.id} still holds {simulated.store.handles()}"
        assert simulated.store.used == 0, f"{simulated.id} still reserves {simulated.store.used} bytes"


def outcomes(witnesses: Sequence[Witness]) -> Mapping[str, int]:
    """How often requests ended in which way."""
    ways = [how for witness in witnesses for how in witness.ended.values()]
    return {how: ways.count(how) for how in sorted(set(ways))}
