"""A simulated stage server: what ``stage_server`` does with the scheduler's actions, in virtual time.

It fetches inputs while its device computes, runs one job at a time, yields between steps, retains outputs, grants
credits, changes roles. What it can't know by itself (costs, the network, chance) it asks of its ``World``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import MappingProxyType
from typing import Any

from scheduler import events as ev
from scheduler.actions import Action, AssignRoles, Cancel, Member, Release, Run
from scheduler.cost.work import Work
from scheduler.sim.device import Device, Task
from scheduler.sim.roles import Roles
from scheduler.sim.setup import ServerSetup
from scheduler.sim.store import Credits, Store
from scheduler.sim.world import Loss, World
from scheduler.spec import Input, Output, ServerSpec, Timings
from wire.previews import preview_steps
from wire.types import Epoch, Handle, ModelKey, Role, ServerId


class Stage(Enum):
    FETCHING = auto()
    ROOMLESS = auto()
    """Its inputs are here, room for its outputs is not."""
    ON_DEVICE = auto()
    """In line or computing."""
    PUBLISHING = auto()
    OVER = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Task):
    run: Run
    work: Work
    live: dict[Epoch, Member]
    """Members that were not cancelled."""
    stage: Stage = Stage.FETCHING
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Port → bytes of what one member leaves."""
    reserved: int = 0
    shown: dict[Epoch, list[Handle]] = field(default_factory=dict)
    here_at: float = 0.0
    ready_at: float = 0.0


@dataclass(slots=True, eq=False, kw_only=True)
class Load(Task):
    order_given: AssignRoles
    seconds: float


@dataclass(slots=True)
class _Stall:
    """Calls that wait for a frozen server."""

    calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)


class SimServer:
    def __init__(self, setup: ServerSetup, life: int, model: ModelKey, world: World, largest: dict[Role, int]):
        """``life``: counts restarts of the same name."""
        self.setup = setup
        self.id = ServerId(f"{setup.name}/{life}")
        self.alive = True
        self.store = Store(setup.store_bytes, largest)
        self._world = world
        self._spec = ServerSpec(
            self.id,
            setup.name,
            model,
            setup.profile.device_class,
            setup.roles,
            setup.capable(),
            setup.memory,
            setup.pinned,
            setup.target,
        )
        self._roles = Roles(setup.roles)
        self._credits = Credits()
        self._jobs: dict[Job, None] = {}
        self._by_epoch: dict[Epoch, Job] = {}
        self._stall: _Stall | None = None
        self._leaving = False
        self._device = Device(world.clock, self._later, self, setup.slowness)

    # --- life ---------------------------------------------------------------------------------------------------------

    def hello(self) -> None:
        """Introduce itself, also again after the gateway had given it up."""
        self._credits.restart()
        self._raise_limits()
        self._spec = replace(self._spec, roles=self._roles.held)
        self._world.send(
            ev.ServerJoined(
                self._spec, self._credits.limits(), running=tuple(self._by_epoch), holds=self.store.handles()
            )
        )
        if self._leaving:
            self._world.send(ev.ServerLeaving(self.id))

    def hear(self, action: Action) -> None:
        """A message of the gateway arrives."""
        self._guarded(self._on, action)

    def die(self) -> None:
        self.alive = False

    @property
    def is_frozen(self) -> bool:
        return self._stall is not None

    def freeze(self) -> None:
        self._stall = self._stall or _Stall()

    def thaw(self) -> None:
        stall, self._stall = self._stall, None
        for call, args in stall.calls if stall is not None else ():
            self._guarded(call, *args)

    def slow_down(self, factor: float) -> None:
        self._device.slow_down(factor)

    def leave(self) -> None:
        self._leaving = True
        self._world.send(ev.ServerLeaving(self.id))
        self._settle()

    @property
    def is_empty(self) -> bool:
        return not self._jobs and not self.store.handles()

    def _later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self._world.clock.after(delay, self._guarded, call, *args)

    def _guarded(self, call: Callable[..., None], *args: Any) -> None:
        if self._stall is not None:
            self._stall.calls.append((call, args))
        elif self.alive:
            call(*args)

    def _on(self, action: Action) -> None:
        match action:
            case Run():
                self._begin(action)
            case Cancel(epochs=epochs):
                for epoch in epochs:
                    self._cancel(epoch)
            case Release(handles=handles):
                self.store.release(handles)
                self._find_room()
            case AssignRoles():
                self._assign(action)
        self._settle()

    def _settle(self) -> None:
        """What holds after everything that happens here: roles advance, credits are granted, an empty leaver goes."""
        change = self._roles.next_load(self._busy_roles())
        if change is not None:
            seconds = sum(self.setup.profile.roles[role].load_seconds for role in change.roles - self._roles.held)
            self._device.line_up(Load(steps=1, step_seconds=seconds, order_given=change, seconds=seconds))
        if self._raise_limits():
            self._world.send(ev.LimitsRaised(self.id, self._credits.limits()))
        if self._leaving and self.is_empty:
            self._leaving = False
            self._world.gone(self.id)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        self._credits.take(run.role)
        if self._leaving or run.role not in self._roles.accepting():
            for member in run.members:
                self._world.send(
                    ev.JobFailed(self.id, member.epoch, "draining", "the role is given up", retryable=True)
                )
            return
        work, seconds = self._world.cost(run, self.setup)
        live = {member.epoch: member for member in run.members}
        steps = work.steps
        job = Job(steps=steps, step_seconds=seconds / steps, urgent=run.preempt, run=run, work=work, live=live)
        job.keep_seconds = run.keep_seconds
        job.shows = preview_steps(steps, max(self._world.previews(member.job) for member in run.members))
        job.here_at = self._world.clock.now
        self._jobs[job] = None
        self._by_epoch |= dict.fromkeys(live, job)
        sources = {source.handle: source for member in run.members for source in member.inputs}
        remote = tuple(source for source in sources.values() if source.handle not in self.store)
        delay = self._world.transfer_seconds(sum(source.nbytes for source in remote)) if remote else 0.0
        self._later(delay, self._fetched, job, remote)

    def _fetched(self, job: Job, remote: tuple[Input, ...]) -> None:
        if job.stage is Stage.OVER:
            return
        losses = {source.handle: self._world.loss(self.setup.name, source) for source in remote}
        lost = {handle: loss for handle, loss in losses.items() if loss is not None}
        if lost:
            self._later(max(loss.seconds for loss in lost.values()), self._fetch_failed, job, lost)
        else:
            self._take_room(job)

    def _fetch_failed(self, job: Job, lost: Mapping[Handle, Loss]) -> None:
        self._fail(job, "input_lost", f"{len(lost)} inputs could not be fetched", lost)
        self._settle()

    def _take_room(self, job: Job) -> None:
        role = job.run.role
        job.sizes = self._world.output_bytes(role, job.work, self.setup)
        nbytes = len(job.run.members) * sum(job.sizes.values())
        if not self.store.reserve(role, nbytes, self._roles.held):
            job.stage = Stage.ROOMLESS
            return
        job.reserved = nbytes
        job.ready_at = self._world.clock.now
        job.stage = Stage.ON_DEVICE
        for epoch in job.live:
            self._world.send(ev.JobFetched(self.id, epoch))
        self._device.line_up(job)
        self._settle()

    def _find_room(self) -> None:
        for job in list(self._jobs):
            if job.stage is Stage.ROOMLESS:
                self._take_room(job)

    def _cancel(self, epoch: Epoch) -> None:
        """An epoch of which nothing is here is confirmed as well."""
        job = self._by_epoch.get(epoch)
        if job is not None and epoch in job.live:
            if len(job.live) == 1:
                self._stop(job)
                return
            del job.live[epoch], self._by_epoch[epoch]
            self.store.release(job.shown.pop(epoch, ()))
        self._world.send(ev.JobCancelled(self.id, epoch))

    def _stop(self, job: Job) -> None:
        if job.stage is Stage.ON_DEVICE:
            self._device.stop(job)
        elif job.stage is Stage.PUBLISHING:
            job.is_stopping = True
            self._device.release(job)
        else:
            self.stopped(job)

    def _fail(self, job: Job, code: str, message: str, lost: Mapping[Handle, Loss] = MappingProxyType({})) -> None:
        if job.stage is Stage.OVER:
            return
        unreached = tuple(handle for handle, loss in lost.items() if loss.unreached)
        for epoch in self._over(job):
            self.store.release(job.shown.pop(epoch, ()))
            self._world.send(ev.JobFailed(self.id, epoch, code, message, True, tuple(lost), unreached))
        self._device.release(job)

    def _over(self, job: Job) -> tuple[Epoch, ...]:
        """Forget the job; the members that still expect a last word."""
        job.stage = Stage.OVER
        del self._jobs[job]
        for epoch in job.live:
            del self._by_epoch[epoch]
        self.store.unreserve(job.reserved)
        self._find_room()
        return tuple(job.live)

    def _publish(self, job: Job) -> None:
        now = self._world.clock.now
        if job.is_stopping:
            self.stopped(job)
            return
        timings = Timings(
            wait=(job.began or now) - job.ready_at,
            fetch=job.ready_at - job.here_at,
            compute=job.compute,
            publish=self._world.publish_seconds,
            paused=job.paused,
            steps=job.steps if job.run.role is Role.DIT else 0,
            batch=len(job.run.members),
        )
        for epoch in self._over(job):
            outputs = tuple(Output(port, self._world.handle(), nbytes) for port, nbytes in job.sizes.items())
            for output in outputs:
                self.store.keep(output.handle, output.nbytes)
            self._world.send(ev.JobDone(self.id, epoch, outputs, timings))
        self._settle()

    # --- what the device reports --------------------------------------------------------------------------------------

    def started(self, task: Task) -> None:
        if isinstance(task, Job):
            for epoch in task.live:
                self._world.send(ev.JobStarted(self.id, epoch))

    def paused(self, task: Task) -> None:
        if isinstance(task, Job):
            for epoch in task.live:
                self._world.send(ev.JobPaused(self.id, epoch, task.step))

    def progressed(self, task: Task, step_seconds: float) -> None:
        if isinstance(task, Job):
            for epoch in task.live:
                self._world.send(ev.JobProgressed(self.id, epoch, task.step, task.steps, step_seconds))

    def showed(self, task: Task) -> None:
        """What finds no room is not shown."""
        if not isinstance(task, Job) or task.is_stopping:
            return
        nbytes, index = task.sizes.get(Role.DECODER, 0), task.shows.index(task.step)
        for epoch, member in task.live.items():
            asked = index < self._world.previews(member.job)
            if asked and self.store.reserve(task.run.role, nbytes, self._roles.held):
                self.store.unreserve(nbytes)
                handle = self._world.handle()
                self.store.keep(handle, nbytes)
                task.shown.setdefault(epoch, []).append(handle)
                self._world.send(ev.JobPreviewed(self.id, epoch, index, Output(Role.DECODER, handle, nbytes)))

    def stopped(self, task: Task) -> None:
        if isinstance(task, Job) and task.stage is not Stage.OVER:
            for epoch in self._over(task):
                self.store.release(task.shown.pop(epoch, ()))
                self._world.send(ev.JobCancelled(self.id, epoch))
            self._settle()

    def ended(self, task: Task) -> None:
        if isinstance(task, Load):
            self._loaded(task)
        elif isinstance(task, Job):
            task.stage = Stage.PUBLISHING
            if self._world.mishap("job_fails"):
                self._fail(task, "engine_error", "an injected fault")
                self._settle()
            else:
                self._later(self._world.publish_seconds, self._publish, task)

    def busy(self, task: Task, since: float) -> None:
        self._world.busy(self.setup.name, task.run.role if isinstance(task, Job) else None, since)

    # --- roles --------------------------------------------------------------------------------------------------------

    def _assign(self, order: AssignRoles) -> None:
        fault = self._fault(order.roles)
        refused = order if fault else self._roles.assign(order)
        if refused is not None:
            why = fault or "replaced by a newer assignment"
            self._world.send(ev.RolesFailed(self.id, refused.epoch, self._roles.held, why))

    def _fault(self, roles: frozenset[Role]) -> str:
        if self._leaving or self.setup.pinned or not roles:
            return "the server is leaving or pinned, or no role was assigned"
        return ""

    def _loaded(self, load: Load) -> None:
        well = self.setup.fits(load.order_given.roles) and not self._world.mishap("load_fails")
        order = self._roles.loaded(well=well)
        if well:
            self._world.send(ev.RolesReady(self.id, order.epoch, self._roles.held, load.seconds))
        else:
            self._world.send(ev.RolesFailed(self.id, order.epoch, self._roles.held, "the load failed"))
        self._settle()

    def _busy_roles(self) -> set[Role]:
        return {job.run.role for job in self._jobs}

    def _raise_limits(self) -> bool:
        if self._leaving:
            return False
        active: defaultdict[Role, int] = defaultdict(int)
        fetching: defaultdict[Role, int] = defaultdict(int)
        for job in self._jobs:
            active[job.run.role] += 1
            if not job.reserved:
                fetching[job.run.role] += len(job.live)
        accepting, held = self._roles.accepting(), self._roles.held
        roles = [role for role in Role if role in accepting]
        return self._credits.raise_limits(roles, active, fetching, lambda role, n: self.store.room(role, n, held))
