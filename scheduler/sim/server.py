"""A simulated stage server: what ``stage_server`` does with the scheduler's actions, in virtual time.

It fetches inputs while its device computes, runs one job at a time, yields between steps, retains outputs, grants
credits, changes roles. What it can't know by itself (costs, the network, chance) it asks of its ``World``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from scheduler import events as ev
from scheduler.actions import Action, AssignRoles, Cancel, HandOver, Help, Preload, Release, Run
from scheduler.sim.device import Device, Task
from scheduler.sim.role_changes import RoleChanges
from scheduler.sim.setup import ServerSetup
from scheduler.sim.store import Credits, Store
from scheduler.sim.tasks import Job, Load, Stage
from scheduler.sim.world import Loss, World
from scheduler.spec import Input, Output, ServerSpec, Timings
from wire.previews import preview_steps
from wire.types import Epoch, Handle, ModelKey, Role, ServerId


@dataclass(slots=True)
class _Stall:
    """Calls that wait for a frozen server."""

    calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)


class SimServer:
    def __init__(
        self, setup: ServerSetup, life: int, world: World, largest: dict[Role, int], shared: Device | None = None
    ):
        """``life``: counts restarts of the same name; ``shared``: the device, where others have it too."""
        self.setup = setup
        self.id = ServerId(f"{setup.name}/{life}")
        self.alive = True
        self.store = Store(setup.store_bytes, largest)
        self._world = world
        self._spec = ServerSpec(
            self.id,
            setup.name,
            ModelKey(setup.model),
            setup.profile.device_class,
            setup.roles,
            setup.capable(),
            setup.memory,
            setup.pinned,
            setup.target,
            reads_ahead=True,
            software=setup.software,
            shares_guidance=setup.shares_guidance,
            device=f"{setup.device}/{life}" if setup.device else "",
            pool=setup.pool,
        )
        self._credits = Credits(dict.fromkeys(Role, setup.together + 1))
        self._jobs: dict[Epoch, Job] = {}
        self._stall: _Stall | None = None
        self._leaving = False
        self.device = shared or Device(world.clock, self.later, self, setup.slowness, setup.report_seconds)
        self._roles = RoleChanges(self, world)

    # --- life ---------------------------------------------------------------------------------------------------------

    def hello(self) -> None:
        """Introduce itself, also again after the gateway had given it up."""
        self._credits.restart()
        self._raise_limits()
        self._spec = replace(self._spec, roles=self._roles.held, warm=self._roles.introduced())
        self._world.send(
            ev.ServerJoined(self._spec, self._credits.limits(), running=tuple(self._jobs), holds=self.store.handles())
        )
        if self._leaving:
            self._world.send(ev.ServerLeaving(self.id))

    def hear(self, action: Action) -> None:
        """A message of the gateway arrives."""
        self._guarded(self._on, action)

    def die(self) -> None:
        self.alive = False
        self._part_all()

    def _part_all(self) -> None:
        for job in self._jobs.values():
            self._part(job)

    @property
    def held(self) -> frozenset[Role]:
        """Roles on the device."""
        return self._roles.held

    @property
    def is_frozen(self) -> bool:
        return self._stall is not None

    def freeze(self) -> None:
        self._stall = self._stall or _Stall()
        self._part_all()
        for job in self._jobs.values():  # whoever helps does not wait
            job.step_seconds = job.whole_seconds

    def thaw(self) -> None:
        stall, self._stall = self._stall, None
        for call, args in stall.calls if stall is not None else ():
            self._guarded(call, *args)
        for job in [job for job in self._jobs.values() if job.leader is not None]:
            self._stop(job)

    def slow_down(self, factor: float) -> None:
        self.device.slow_down(factor)

    def leave(self) -> None:
        self._leaving = True
        self._world.send(ev.ServerLeaving(self.id))
        self._settle()

    @property
    def is_empty(self) -> bool:
        return not self._jobs and not self.store.handles()

    def later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
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
            case Help():
                self._help(action)
            case Cancel(epochs=epochs) | HandOver(epochs=epochs):
                for epoch in epochs:
                    (self._cancel if isinstance(action, Cancel) else self._hand_over)(epoch)
            case Release(handles=handles):
                self.store.release(handles)
                self._find_room()
            case AssignRoles():
                self._roles.assign(action, is_leaving=self._leaving)
            case Preload(roles=roles):
                if not self._leaving:
                    self._roles.read_ahead(roles)
        self._settle()

    def _settle(self) -> None:
        """What holds after everything that happens here: roles advance, credits are granted, an empty leaver goes."""
        self._roles.advance(self._busy_roles())
        if self._raise_limits():
            self._world.send(ev.LimitsRaised(self.id, self._credits.limits()))
        if self._leaving and self.is_empty and not (self.setup.device and self._roles.is_loading):
            self._leaving = False
            self._world.gone(self.id)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        self._credits.take(run.role)
        if self._leaving or run.role not in self._roles.accepting():
            self._world.send(ev.JobFailed(self.id, run.epoch, "draining", "the role is given up", retryable=True))
            return
        cost = self._world.cost(run, self.setup)
        steps = cost.work.steps
        job = Job(
            steps=steps,
            step_seconds=cost.seconds / steps,
            whole_seconds=cost.seconds / steps,
            halved_seconds=cost.halved / steps,
            urgent=run.preempt,
            kind=replace(cost.work, steps=1) if run.share else None,
            together=self.setup.together,
            marginal=cost.marginal,
            shows=preview_steps(steps, self._world.previews(run.job)),
            keep_seconds=run.keep_seconds,
            run=run,
            work=cost.work,
            here_at=self._world.clock.now,
            owner=self,
        )
        self._jobs[run.epoch] = job
        sources = run.inputs
        if run.resume is not None:
            sources = (*sources, run.resume)
            job.step = job.first_step = self._world.steps_done(run.resume.handle)
        remote = tuple(source for source in sources if source.handle not in self.store)
        delay = self._world.transfer_seconds(sum(source.nbytes for source in remote)) if remote else 0.0
        self.later(delay, self._fetched, job, remote)

    def _help(self, order: Help) -> None:
        """Until it is told to stop, which is when the other one's attempt has ended: steps enough."""
        run = Run(
            cause=order.cause,
            reason=order.reason,
            server=self.id,
            role=Role.DIT,
            job=order.job,
            epoch=order.epoch,
            inputs=order.inputs,
            deadline=order.deadline,
        )
        self._begin(run)
        job = self._jobs.get(order.epoch)
        if job is not None:
            job.leader = order.partner, order.leader
            job.steps, job.step_seconds, job.shows = 100 * job.steps, job.halved_seconds, ()

    def helped(self, epoch: Epoch, *, comes: bool) -> None:
        job = self._jobs.get(epoch)
        if job is not None and job.stage is not Stage.OVER:
            self.device.repace(job, job.halved_seconds if comes else job.whole_seconds)

    def _part(self, task: Task) -> None:
        """What it helps is alone again."""
        if isinstance(task, Job) and task.leader is not None:
            self._world.help(task.leader, comes=False)

    def _fetched(self, job: Job, remote: tuple[Input, ...]) -> None:
        if job.stage is Stage.OVER:
            return
        losses = {source.handle: self._world.loss(self.setup.name, source) for source in remote}
        lost = {handle: loss for handle, loss in losses.items() if loss is not None}
        if lost:
            self.later(max(loss.seconds for loss in lost.values()), self._fetch_failed, job, lost)
        else:
            self._take_room(job)

    def _fetch_failed(self, job: Job, lost: Mapping[Handle, Loss]) -> None:
        self._fail(job, "input_lost", f"{len(lost)} inputs could not be fetched", lost)
        self._settle()

    def _take_room(self, job: Job) -> None:
        role = job.run.role
        job.sizes = self._world.output_bytes(job.run.job, job.work, self.setup)
        if job.leader is not None:
            job.sizes = {}
        nbytes = sum(job.sizes.values())
        if not self.store.reserve(role, nbytes, self._roles.held):
            job.stage = Stage.ROOMLESS
            return
        job.reserved = nbytes
        job.ready_at = self._world.clock.now
        job.stage = Stage.ON_DEVICE
        self._world.send(ev.JobFetched(self.id, job.epoch))
        self.device.line_up(job)
        self._settle()

    def _find_room(self) -> None:
        for job in list(self._jobs.values()):
            if job.stage is Stage.ROOMLESS:
                self._take_room(job)

    def _cancel(self, epoch: Epoch) -> None:
        """An epoch of which nothing is here is confirmed as well."""
        job = self._jobs.get(epoch)
        if job is not None:
            job.hands_over = False
            self._stop(job)
        else:
            self._world.send(ev.JobCancelled(self.id, epoch))

    def _hand_over(self, epoch: Epoch) -> None:
        """Not one that is past its last step: its end is the answer."""
        job = self._jobs.get(epoch)
        if job is not None and job.stage is not Stage.PUBLISHING and not job.is_stopping:
            job.hands_over = True
            self._stop(job)

    def _surrender(self, job: Job) -> None:
        is_here = job.stage is Stage.ON_DEVICE  # otherwise the gateway still has what it was to go on from
        self._over(job)
        output = None
        if is_here and job.step > 0:
            output = Output(Role.DIT, self._world.begun(job.step), job.sizes.get(Role.DECODER, 0))
            self.store.keep(output.handle, output.nbytes)
        steps = job.step - job.first_step
        company = job.weighed / steps if steps else 1.0
        timings = Timings(compute=job.compute, paused=job.paused, steps=steps, batch=company)
        self._world.send(ev.JobHandedOver(self.id, job.epoch, job.step, output, timings))
        self._settle()

    def _stop(self, job: Job) -> None:
        if job.stage is Stage.ON_DEVICE:
            self.device.stop(job)
        elif job.stage is Stage.PUBLISHING:
            job.is_stopping = True
            self.device.release(job)
        else:
            self.stopped(job)

    def _fail(self, job: Job, code: str, message: str, lost: Mapping[Handle, Loss] = MappingProxyType({})) -> None:
        if job.stage is Stage.OVER:
            return
        unreached = tuple(handle for handle, loss in lost.items() if loss.unreached)
        self._over(job)
        self.store.release(job.shown)
        self._world.send(ev.JobFailed(self.id, job.epoch, code, message, True, tuple(lost), unreached))
        self.device.release(job)

    def _over(self, job: Job) -> None:
        """Forget the job, but for its last word."""
        self._part(job)
        job.stage = Stage.OVER
        del self._jobs[job.epoch]
        self.store.unreserve(job.reserved)
        self._find_room()

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
            batch=job.weighed / (job.steps - job.first_step),
        )
        self._over(job)
        outputs = tuple(Output(port, self._world.handle(), nbytes) for port, nbytes in job.sizes.items())
        for output in outputs:
            self.store.keep(output.handle, output.nbytes)
        self._world.send(ev.JobDone(self.id, job.epoch, outputs, timings))
        self._settle()

    # --- what the device reports --------------------------------------------------------------------------------------

    def started(self, task: Task) -> None:
        if isinstance(task, Job):
            self._world.send(ev.JobStarted(self.id, task.epoch))
            if task.leader is not None:
                self._world.help(task.leader, comes=True)

    def paused(self, task: Task) -> None:
        if isinstance(task, Job):
            self._world.send(ev.JobPaused(self.id, task.epoch, task.step))
            self._part(task)
            self.helped(task.epoch, comes=False)

    def progressed(self, task: Task, step_seconds: float) -> None:
        if isinstance(task, Job):
            self._world.send(ev.JobProgressed(self.id, task.epoch, task.step, task.steps, step_seconds))

    def showed(self, task: Task) -> None:
        """What finds no room is not shown."""
        if not isinstance(task, Job) or task.is_stopping:
            return
        nbytes, index = task.sizes.get(Role.DECODER, 0), task.shows.index(task.step)
        if self.store.reserve(task.run.role, nbytes, self._roles.held):
            self.store.unreserve(nbytes)
            handle = self._world.handle()
            self.store.keep(handle, nbytes)
            task.shown.append(handle)
            self._world.send(ev.JobPreviewed(self.id, task.epoch, index, Output(Role.DECODER, handle, nbytes)))

    def stopped(self, task: Task) -> None:
        if not isinstance(task, Job) or task.stage is Stage.OVER:
            return
        if task.hands_over and task.step >= task.steps:
            task.is_stopping = task.hands_over = False
            self.ended(task)
        elif task.hands_over:
            self._surrender(task)
        else:
            self._over(task)
            self.store.release(task.shown)
            self._world.send(ev.JobCancelled(self.id, task.epoch))
            self._settle()

    def ended(self, task: Task) -> None:
        if isinstance(task, Load):
            self._roles.loaded(task)
            self._settle()
        elif isinstance(task, Job):
            task.stage = Stage.PUBLISHING
            if self._world.mishap("job_fails"):
                self._fail(task, "engine_error", "an injected fault")
                self._settle()
            else:
                self.later(self._world.publish_seconds, self._publish, task)

    def busy(self, task: Task, since: float) -> None:
        self._world.busy(self.setup.name, task.run.role if isinstance(task, Job) else None, since)

    def _busy_roles(self) -> set[Role]:
        return {job.run.role for job in self._jobs.values()}

    def _raise_limits(self) -> bool:
        if self._leaving:
            return False
        active: defaultdict[Role, int] = defaultdict(int)
        fetching: defaultdict[Role, int] = defaultdict(int)
        for job in self._jobs.values():
            active[job.run.role] += 1
            fetching[job.run.role] += not job.reserved
        accepting, held = self._roles.accepting(), self._roles.held
        roles = [role for role in Role if role in accepting]
        return self._credits.raise_limits(roles, active, fetching, lambda role, n: self.store.room(role, n, held))
