"""A scheduler with a clock and a memory of what it asked for, so that tests read as events → actions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from typing import TypeVar

from scheduler import actions as do
from scheduler import events as ev
from scheduler import invariants
from scheduler.actions import Action
from scheduler.core import Scheduler
from scheduler.cost.work import Target, Work
from scheduler.policy import Policies
from scheduler.spec import IMAGE_PORT, JobSpec, Made, Output, RequestSpec, RoleCost, ServerSpec, Timings
from wire.types import REQUIRED, Epoch, Handle, JobId, ModelKey, RequestId, Role, ServerId

MODEL = ModelKey("model")
E, D, V = REQUIRED
ALL = frozenset(REQUIRED)
A = TypeVar("A", bound=Action)


class Game:
    """Epochs and handles are looked up by job, the latest attempt of each."""

    def __init__(self, policies: Policies | None = None) -> None:
        self.scheduler = Scheduler("g", policies)
        self.now = 0.0
        self.epochs: dict[str, Epoch] = {}
        self.where: dict[str, ServerId] = {}
        self.handles: dict[str, tuple[Output, ...]] = {}
        self.trials: list[tuple[ServerId, ServerId]] = []
        """Asked for and not answered: fetcher, holder."""
        self._numbers = count(1)
        self._masked: set[str] = set()

    def post(self, event: ev.Event) -> list[Action]:
        actions = self.scheduler.handle(event, self.now)
        invariants.check(self.scheduler.view)
        self.trials += [(trial.fetcher, trial.holder) for trial in of(do.TryPeer, actions)]
        for run in of(do.Run, actions):
            self.epochs[run.job] = run.epoch
            self.where[run.job] = run.server
        return actions

    def at(self, now: float) -> list[Action]:
        """Let time pass."""
        self.now = now
        return self.post(ev.Tick())

    # --- servers ------------------------------------------------------------------------------------------------------

    def join(
        self,
        name: str,
        roles: Iterable[Role] = ALL,
        limit: int | Mapping[Role, int] = 100,
        *,
        capable: Iterable[Role] = ALL,
        together: int = 1,
        running: tuple[Epoch, ...] = (),
        holds: tuple[Handle, ...] = (),
        adapters: Mapping[str, Iterable[Role]] | None = None,
        software: str = "",
        shares_guidance: bool = False,
    ) -> list[Action]:
        spec = ServerSpec(
            ServerId(name),
            name,
            MODEL,
            "gpu",
            frozenset(roles),
            {role: RoleCost(together=together) for role in capable},
            target=Target("model", "gpu", "bfloat16"),
            adapters={adapter: frozenset(concerned) for adapter, concerned in (adapters or {}).items()},
            software=software,
            shares_guidance=shares_guidance,
        )
        limits = dict.fromkeys(REQUIRED, limit) if isinstance(limit, int) else limit
        return self.post(ev.ServerJoined(spec, limits, running, holds))

    def lose(self, name: str) -> list[Action]:
        return self.post(ev.ServerLost(ServerId(name), "it died"))

    # --- requests -----------------------------------------------------------------------------------------------------

    def ask(
        self,
        name: str,
        images: int = 1,
        *,
        deadline: float = 1000.0,
        steps: int = 20,
        priority: int = 0,
        masks: bool = False,
        previews: int = 0,
        exact: bool = True,
        step_cache: str = "",
        adapters: Mapping[Role, Iterable[str]] | None = None,
        made: Made | None = None,
        guided: bool = False,
        steered: bool = False,
    ) -> list[Action]:
        """With ``masks``, the decoder reads an output of the encoder as well. ``adapters``: those of a role's jobs.
        ``made``: what the encoder job has left already.
        """
        needed = {role: frozenset(some) for role, some in (adapters or {}).items()}
        encoder = JobSpec(JobId(f"{name}/e"), E, Work(E), adapters=needed.get(E, frozenset()), made=made)
        self._masked |= {encoder.id} if masks else set()
        jobs = [encoder]
        for i in range(images):
            decoding, shared = Work(V, height=64, width=64), (encoder.id,) * masks
            shown = tuple(
                JobSpec(JobId(f"{name}/v{i}.preview.{k}"), V, decoding, shared, optional=True) for k in range(previews)
            )
            denoising = Work(D, height=64, width=64, steps=steps, cfg=guided, step_cache=step_cache)
            mine = needed.get(D, frozenset())
            job, needs = JobId(f"{name}/d{i}"), (encoder.id,)
            dit = JobSpec(job, D, denoising, needs, previews=shown, adapters=mine, is_steered=steered)
            jobs += [dit, JobSpec(JobId(f"{name}/v{i}"), V, decoding, (*shared, dit.id))]
        spec = RequestSpec(RequestId(name), MODEL, tuple(jobs), self.now + deadline, priority=priority, exact=exact)
        return self.post(ev.RequestArrived(spec))

    # --- attempts -----------------------------------------------------------------------------------------------------

    def fetched(self, job: str) -> list[Action]:
        return self.post(ev.JobFetched(self.where[job], self.epochs[job]))

    def started(self, job: str) -> list[Action]:
        return self.post(ev.JobStarted(self.where[job], self.epochs[job]))

    def progressed(self, job: str, step: int, steps: int, step_seconds: float) -> list[Action]:
        return self.post(ev.JobProgressed(self.where[job], self.epochs[job], step, steps, step_seconds))

    def shows(self, job: str, index: int) -> list[Action]:
        """An intermediate picture lies on the server under the handle "JOB:shown:INDEX"."""
        output = Output(V, Handle(f"{job}:shown:{index}"), 10)
        return self.post(ev.JobPreviewed(self.where[job], self.epochs[job], index, output))

    def done(self, job: str) -> list[Action]:
        """Leaves an output at every later role's port, or a picture."""
        event = self.done_event(job)
        self.handles[job] = event.outputs
        return self.post(event)

    def done_event(self, job: str) -> ev.JobDone:
        kind = job.split("/")[1][0]
        ports = {"e": ["dit", *["decoder"] * (job in self._masked)], "d": ["decoder"], "v": [IMAGE_PORT]}[kind]
        outputs = tuple(Output(port, Handle(f"{job}:{port}:{next(self._numbers)}"), 10) for port in ports)
        return ev.JobDone(self.where[job], self.epochs[job], outputs, Timings(compute=0.1))

    def failed(
        self,
        job: str,
        code: str = "engine_error",
        *,
        retryable: bool = True,
        lost: Iterable[Handle] = (),
        unreached: bool = False,
    ) -> list[Action]:
        """``unreached``: so were the holders of what is lost."""
        handles = tuple(lost)
        where, epoch = self.where[job], self.epochs[job]
        return self.post(
            ev.JobFailed(where, epoch, code, "it broke", retryable, handles, unreached=handles if unreached else ())
        )

    def cancelled(self, job: str) -> list[Action]:
        return self.post(ev.JobCancelled(self.where[job], self.epochs[job]))

    def taken(self, job: str) -> list[Action]:
        return self.post(ev.ResultTaken(JobId(job)))

    def handle(self, job: str) -> Handle:
        return self.handles[job][0].handle

    def through(self, *jobs: str) -> list[Action]:
        """Run each to its end; what the last one led to."""
        actions: list[Action] = []
        for job in jobs:
            self.fetched(job)
            self.started(job)
            actions = self.done(job)
        return actions

    def jobs_on(self, name: str) -> list[str]:
        return [attempt.job.spec.id for attempt in self.scheduler.view.servers[ServerId(name)].attempts.values()]


def of(kind: type[A], actions: Iterable[Action]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def runs(actions: Iterable[Action]) -> list[tuple[str, str]]:
    """(job, server) of every job that was given away."""
    return [(run.job, run.server) for run in of(do.Run, actions)]


def releases(actions: Iterable[Action]) -> dict[str, list[Handle]]:
    found: dict[str, list[Handle]] = {}
    for release in of(do.Release, actions):
        found.setdefault(release.server, []).extend(release.handles)
    return found


def failure(actions: Iterable[Action]) -> tuple[str, str] | None:
    """(request, code) of the one request that failed."""
    found = [(fail.request, fail.code) for fail in of(do.Fail, actions)]
    assert len(found) <= 1
    return found[0] if found else None
