"""The simulation: arrivals, servers, network and faults as calls in virtual time, around the real ``Scheduler``.

    result = simulate(scenario, policies, seed=1)          # -> scheduler.sim.metrics.Result
    Simulation(scenario, policies, seed, [watcher]).run()  # the same with an eye on every event

``policies`` must be new ones for every run, since they learn. One seed gives one course of events, to the last bit;
arrivals, and the noise on each job's cost, are the same whatever the policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Protocol

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action, Run
from scheduler.core import Scheduler
from scheduler.cost.model import CostModel
from scheduler.cost.work import Work
from scheduler.policy import Policies
from scheduler.roles.problem import Infeasible, Problem
from scheduler.roles.solver import Plan
from scheduler.roles.solver import plan as best_plan
from scheduler.sim.clock import Clock
from scheduler.sim.device import Device
from scheduler.sim.faults import Faults
from scheduler.sim.launcher import Launcher, Scaling, predicted
from scheduler.sim.metrics import Recorder, Result
from scheduler.sim.server import SimServer
from scheduler.sim.setup import (
    GATEWAY,
    Scenario,
    ServerSetup,
    fit,
)
from scheduler.sim.workload import Arrival, Kind, Phase
from scheduler.sim.world import Cost, Loss
from scheduler.spec import IMAGE_PORT, Input
from wire.types import READERS, STAGES, Epoch, Handle, JobId, ModelKey, RequestId, Role, ServerId

PICTURE_BYTES_PER_PIXEL = 1.5
RAW_BYTES_PER_PIXEL = 3
TRIAL_SECONDS = 3.0
"""After which a trial counts as failed."""
LARGEST_SIDE = 2048
"""Of pictures that stores keep room for."""


class Watcher(Protocol):
    """Told of everything that the scheduler sees and says, in order."""

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None: ...

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None:
        """A device was busy; role None: loading weights."""


class Simulation:
    """One run. It is the ``World`` of its servers."""

    def __init__(
        self,
        scenario: Scenario,
        policies: Policies,
        seed: int = 0,
        watchers: Iterable[Watcher] = (),
        scaling: Scaling | None = None,
    ):
        """``scaling``: who decides about the scenario's pools; ``scheduler.scaling`` if not given."""
        self.scenario = scenario
        self.clock = Clock()
        self.scheduler = Scheduler("sim", policies)
        self.publish_seconds = scenario.publish_seconds
        self.solve: Callable[[Problem], Plan] = best_plan
        self.servers: dict[ServerId, SimServer] = {}
        """Alive."""
        self._watchers = list(watchers)
        self.launcher = Launcher(self, scenario.pools, (scaling or predicted)(scenario, self.scheduler.view), seed)
        policies.coming.follow(self.launcher.scaler)
        self._truth = CostModel(server.profile for server in scenario.setups)
        self._works: dict[JobId, Work] = {}
        self._previews: dict[JobId, int] = {}
        self._passed_on: set[JobId] = set()
        """Jobs whose picture another stage reads."""
        self._kinds: dict[RequestId, Kind] = {}
        """Of requests whose end is not known yet."""
        self._jobs: dict[RequestId, tuple[JobId, ...]] = {}
        self._seed = seed
        self._arrivals = scenario.workload.arrivals(Random(f"{seed}/arrivals"))
        self._mixes = Random(f"{seed}/backlog")
        self._network = Random(f"{seed}/network")
        self._mishaps = Random(f"{seed}/mishaps")
        outputs = scenario.setups[0].profile.roles[Role.ENCODER].outputs
        self._masks = any(tensor.port is Role.DECODER for tensor in outputs)
        self._faults = Faults(self, scenario)
        self._largest = _largest_outputs(scenario)
        self._counter = 0
        self._begun: dict[Handle, int] = {}
        self._names = 0
        self._lives: dict[str, int] = {}
        self.by_name: dict[str, SimServer] = {}
        """The latest of each name, dead ones too."""
        self._tick_at: float | None = None
        self._coming = True
        self._phase: tuple[float, Phase] | None = None
        """End, and what it is, of a phase with a backlog."""

    def run(self) -> None:
        """Until every request has ended; phases with a backlog end with their time."""
        for setup in self.scenario.servers:
            self.clock.at(setup.joins_at, self.join, setup)
        self._faults.begin()
        for began, phase in self.scenario.workload.starts():
            if phase.backlog:
                self.clock.at(began + 1e-3, self._fill_backlog, began + phase.seconds, phase)
        self.launcher.open()
        self._next_arrival()
        end = self.scenario.workload.seconds
        has_backlog = any(phase.backlog for phase in self.scenario.workload.phases)
        while self._coming or self._kinds or (self.clock.now < end and has_backlog):
            if (has_backlog and self.clock.now >= end) or not self.clock.step():
                break

    def settle(self, seconds: float) -> None:
        """Let things run for a while after the end, so that what was told reaches everybody."""
        until = self.clock.now + seconds
        while (due := self.clock.next_at()) is not None and due <= until:
            self.clock.step()

    def post(self, event: ev.Event) -> None:
        """The gateway learns of something now."""
        now = self.clock.now
        actions = self.scheduler.handle(event, now)
        for watcher in self._watchers:
            watcher.decided(event, actions, now)
        self.launcher.scaler.note(event, now)
        for action in actions:
            self._do(action)
        self._wake()

    # --- the gateway --------------------------------------------------------------------------------------------------

    def _do(self, action: Action) -> None:
        match action:
            case do.Run() | do.Help() | do.Cancel() | do.HandOver() | do.Release() | do.AssignRoles() | do.Preload():
                self.clock.after(self.scenario.network.control, self._deliver, action.server, action)
            case do.FetchResult(job=job, source=source):
                self.clock.after(self.transfer_seconds(source.nbytes), self._fetched, job, source)
            case do.Finish(request=request) | do.Fail(request=request) | do.Reject(request=request):
                self._ended(request)
            case do.TryPeer():
                self.clock.after(self.scenario.network.control, self._try, action)
            case do.SolvePlan(problem=problem):
                self.clock.after(self.scenario.solver_seconds, self._solved, problem)

    def _deliver(self, server_id: ServerId, action: Action) -> None:
        server = self.servers.get(server_id)
        if server is not None:
            server.hear(action)

    def _fetched(self, job: JobId, source: Input) -> None:
        loss = self.loss(GATEWAY, source)
        if loss is None and not self.mishap("result_lost"):
            self.post(ev.ResultTaken(job))
        else:
            loss = loss or Loss(0.0, unreached=False)
            self.clock.after(loss.seconds, self.post, ev.ResultLost(job, source.handle, loss.unreached))

    def _try(self, trial: do.TryPeer) -> None:
        network = self.scenario.network
        is_silent = not self._is_reached(trial)
        self.clock.after(
            min(TRIAL_SECONDS, network.fetch_timeout) if is_silent else network.latency, self._tried, trial
        )

    def _tried(self, trial: do.TryPeer) -> None:
        fetcher = self.servers.get(trial.fetcher)
        if trial.fetcher and (fetcher is None or fetcher.is_frozen):
            return
        if self._is_reached(trial):
            self.post(ev.PeerReached(trial.fetcher, trial.holder))
        else:
            self.post(ev.PeerUnreached(trial.fetcher, trial.holder, f"{trial.holder}: no answer"))

    def _is_reached(self, trial: do.TryPeer) -> bool:
        fetcher, holder = self.servers.get(trial.fetcher), self.servers.get(trial.holder)
        name = fetcher.setup.name if fetcher is not None else GATEWAY
        return holder is not None and not holder.is_frozen and not self._faults.cut_off(name, holder.setup.name)

    def _solved(self, problem: Problem) -> None:
        found: Plan | None
        try:
            found = self.solve(problem)
        except Infeasible:
            found = None
        self.post(ev.PlanReady(found))

    def _wake(self) -> None:
        due = self.scheduler.next_wakeup()
        if due is not None and (self._tick_at is None or due < self._tick_at):
            self._tick_at = due
            self.clock.at(due, self._tick, due)

    def _tick(self, due: float) -> None:
        if self._tick_at != due:
            return  # an earlier one has taken its place
        self._tick_at = None
        self.post(ev.Tick())

    # --- clients ------------------------------------------------------------------------------------------------------

    def _next_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._coming = False
        else:
            self.clock.at(arrival.at, self._arrive, arrival)

    def _arrive(self, arrival: Arrival) -> None:
        self._ask(arrival.kind)
        self._next_arrival()

    def _ask(self, kind: Kind) -> None:
        self._names += 1
        spec = kind.request(
            f"r{self._names}", ModelKey(kind.model or self.scenario.model), self.clock.now, masks=self._masks
        )
        self._kinds[spec.id] = kind
        jobs = [each for job in spec.jobs for each in (job, *job.previews)]
        self._jobs[spec.id] = tuple(job.id for job in jobs)
        self._works |= {job.id: job.work for job in jobs}
        self._passed_on |= {job.id for job in jobs if job.is_passed_on}
        self._previews |= {job.id: len(job.previews) for job in jobs}
        if kind.patience < kind.deadline:
            self.clock.after(kind.patience, self._hang_up, spec.id)
        self.post(ev.RequestArrived(spec))

    def _hang_up(self, request: RequestId) -> None:
        if request in self._kinds:
            self._ended(request)
            self.post(ev.RequestCancelled(request))

    def _ended(self, request: RequestId) -> None:
        if self._kinds.pop(request, None) is None:
            return
        for job in self._jobs.pop(request):
            del self._works[job], self._previews[job]
            self._passed_on.discard(job)
        if self._phase is not None and self.clock.now < self._phase[0]:
            self.clock.after(0.0, self._ask, self._phase[1].kind(self._mixes))

    def _fill_backlog(self, end: float, phase: Phase) -> None:
        self._phase = (end, phase)
        for _ in range(phase.backlog - len(self._kinds)):
            self._ask(phase.kind(self._mixes))

    # --- servers come and go -----------------------------------------------------------------------------------------

    def join(self, setup: ServerSetup) -> None:
        """A server is here."""
        life = self._lives[setup.name] = self._lives.get(setup.name, 0) + 1
        server = SimServer(setup, life, self, self._largest, self._shared_device(setup))
        self.servers[server.id] = server
        self.by_name[setup.name] = server
        server.hello()

    def _shared_device(self, setup: ServerSetup) -> Device | None:
        """Of the servers that share one, the first brings it."""
        others = (server for server in self.servers.values() if server.setup.shares(setup))
        return next((server.device for server in others), None)

    def kill(self, server: SimServer, restart_after: float | None = None) -> None:
        """It dies at once, with all that it has."""
        server.die()
        del self.servers[server.id]
        self.launcher.gone(server.setup)
        self.clock.after(self.scenario.network.detection, self.post, ev.ServerLost(server.id, "killed"))
        if restart_after is not None:
            self.clock.after(restart_after, self.join, server.setup)

    def gone(self, server: ServerId) -> None:
        left = self.servers.pop(server)
        left.die()
        self.launcher.gone(left.setup)
        self.send(ev.ServerLost(server, "it said goodbye"))

    # --- what servers ask of the world --------------------------------------------------------------------------------

    def send(self, event: ev.Event) -> None:
        self.clock.after(self.scenario.network.control, self.post, event)

    def cost(self, job: Run, setup: ServerSetup) -> Cost:
        """Noise goes by job, not by the order of events, so that it is the same under all policies."""
        work = self._works.get(job.job)
        if work is None:  # its request is over, and a Cancel on its way
            work = Work(job.role, height=64, width=64)
        factor = Random(f"{self._seed}/{job.job}").lognormvariate(0.0, self.scenario.noise)
        seconds = factor * self._truth.seconds(work, setup.target)
        halved = factor * self._truth.seconds(replace(work, cfg=False, more_passes=0.0), setup.target)
        swaps = work.steps * self.scenario.network.latency
        return Cost(work, seconds, self._truth.batch_marginal(work, setup.target), min(seconds, halved + swaps))

    def help(self, leader: tuple[ServerId, Epoch], *, comes: bool) -> None:
        server, epoch = leader
        if server in self.servers:
            self.servers[server].helped(epoch, comes=comes)

    def previews(self, job: JobId) -> int:
        return self._previews.get(job, 0)

    def transfer_seconds(self, nbytes: int) -> float:
        network = self.scenario.network
        return (network.latency + nbytes / network.bandwidth) * (1 + network.jitter * self._network.random())

    def loss(self, reader: str, source: Input) -> Loss | None:
        holder = self.servers.get(source.holder)
        if holder is None:
            return Loss(self.scenario.network.detection, unreached=True)
        if holder.is_frozen or self._faults.cut_off(reader, holder.setup.name):
            return Loss(self.scenario.network.fetch_timeout, unreached=True)
        is_there = source.handle in holder.store and not self.mishap("input_lost")
        return None if is_there else Loss(0.0, unreached=False)

    def output_bytes(self, job: JobId, work: Work, setup: ServerSetup) -> Mapping[str, int]:
        return _output_bytes(work, setup, is_passed_on=job in self._passed_on)

    def handle(self) -> Handle:
        self._counter += 1
        return Handle(f"h{self._counter}")

    def begun(self, step: int) -> Handle:
        handle = self.handle()
        self._begun[handle] = step
        return handle

    def steps_done(self, handle: Handle) -> int:
        return self._begun[handle]

    def fits(self, setup: ServerSetup, roles: frozenset[Role]) -> bool:
        beside = [(each.setup, each.held) for each in self.servers.values() if each.setup.shares(setup)]
        return fit([(setup, roles), *(held for held in beside if held[0] is not setup)])

    def mishap(self, kind: str) -> bool:
        chance: float = getattr(self.scenario.chances, kind)
        return chance > 0 and self._mishaps.random() < chance

    def busy(self, server: str, role: Role | None, since: float) -> None:
        for watcher in self._watchers:
            watcher.computed(server, role, since, self.clock.now)


def simulate(
    scenario: Scenario,
    policies: Policies,
    seed: int = 0,
    watchers: Iterable[Watcher] = (),
    scaling: Scaling | None = None,
) -> Result:
    """Run a scenario to its end."""
    recorder = Recorder(scenario)
    simulation = Simulation(scenario, policies, seed, [recorder, *watchers], scaling)
    simulation.run()
    return recorder.result(simulation.launcher.starts())


def _output_bytes(work: Work, setup: ServerSetup, *, is_passed_on: bool = False) -> dict[str, int]:
    role, pixels = work.role, work.height * work.width
    if is_passed_on:
        return {later.value: RAW_BYTES_PER_PIXEL * pixels for later in READERS[role]}
    if STAGES[role].makes_pictures:
        return {IMAGE_PORT: int(pixels * setup.profile.roles[role].factor ** 2 * PICTURE_BYTES_PER_PIXEL)}
    sizes = setup.profile.output_bytes(role, work.height, work.width, work.text_tokens)
    return {port.value: nbytes for port, nbytes in sizes.items()}


def _largest_outputs(scenario: Scenario) -> dict[Role, int]:
    return {role: max(_sizes(role, scenario), default=0) for role in Role}


def _sizes(role: Role, scenario: Scenario) -> Iterator[int]:
    """A picture that is passed on counts as largest: it has no file format yet."""
    work = Work(role, height=LARGEST_SIDE, width=LARGEST_SIDE)
    for setup in scenario.setups:
        if role in setup.profile.roles:
            yield sum(_output_bytes(work, setup).values())
            if any(later in setup.profile.roles for later in READERS[role] if STAGES[later].is_optional):
                yield sum(_output_bytes(work, setup, is_passed_on=True).values())
