"""The scheduler's records of requests, jobs, attempts and servers. Only the modules of the core change them.

Each is one thing with an identity: they are compared, and hashed, as such.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.spec import Input, JobSpec, Output, RequestSpec, ServerSpec
from scheduler.transitions import COMMITTED, TRANSITIONS, JobState
from wire.types import Epoch, JobId, Role, ServerId


class InvalidTransition(Exception):
    """A defect of the scheduler itself."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One job on one server."""

    epoch: Epoch
    job: Job
    server: Server
    batch: Epoch
    """Epoch of the first member of its batch: members share a slot."""
    members: int
    """Of the batch."""
    committed_at: float
    predicted_seconds: float
    """Of the whole batch."""
    started_at: float | None = None
    step: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    reported_at: float = 0.0
    paused_at: float | None = None
    preemptions: int = 0
    """Jobs that were let in before it goes on."""

    def pause(self, now: float) -> None:
        self.paused_at = now

    def resume(self, now: float) -> None:
        """Starts it, or goes on with it: a pause is no part of its own time."""
        if self.paused_at is not None and self.started_at is not None:
            self.started_at += now - self.paused_at
            self.reported_at += now - self.paused_at
        elif self.started_at is None:
            self.started_at = now
        self.paused_at = None

    def remaining(self, now: float) -> float:
        """Predicted seconds that it still needs the device, 0 if overdue; from its own pace once that is known."""
        if self.paused_at is not None:
            now = self.paused_at
        if self.steps:
            return max(0.0, (self.steps - self.step) * self.step_seconds - (now - self.reported_at))
        begun = now if self.started_at is None else self.started_at
        return max(0.0, self.predicted_seconds - (now - begun))


@dataclass(slots=True, eq=False)
class Job:
    spec: JobSpec
    request: Request
    state: JobState = JobState.WAITING
    missing: set[JobId] = field(default_factory=set)
    """Jobs that must be done (again) before this one can run."""
    readers: list[Job] = field(default_factory=list)
    attempt: Attempt | None = None
    outputs: tuple[Output, ...] = ()
    holder: ServerId | None = None
    """Server that retains ``outputs``."""
    taken: bool = False
    """The gateway has its picture."""
    failures: int = 0
    """Attempts that ended with a reported error."""
    is_spoilt: bool = False
    """An attempt came out with NaN or infinity: one more such, and its request fails."""
    avoid: set[ServerId] = field(default_factory=set)
    """Servers on which it is not to run again while another server serves its role; it then runs alone, not in a batch.
    Changes only while it is in no queue."""
    unreached: int = 0
    """Attempts that ended because somebody could not be reached: nobody's failure."""
    losses: int = 0
    """Servers that died while they worked on it."""
    preview_of: Job | None = None
    """The dit job that showed what this one decodes, if it is a preview …"""
    shown: Input | None = None
    """… and where that lies, until it has been read."""
    queued_key: tuple[float, ...] | None = None
    """Its key while it is in a queue."""
    price: float = 0.0
    """Predicted reference seconds, as of …"""
    priced_at: int = -1
    """… this version of the cost model."""

    def become(self, state: JobState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise InvalidTransition(f"job {self.spec.id}: {self.state} → {state}")
        self.state = state

    @property
    def is_runnable(self) -> bool:
        return self.state is JobState.WAITING and not self.missing

    @property
    def is_settled(self) -> bool:
        """Nothing can make it run again: it is delivered, or all that read it are settled."""
        if self.spec.is_final:
            return self.taken
        if self.spec.optional:
            return self.taken
        return self.state is JobState.DONE and all(reader.is_settled for reader in self.readers)

    def output(self, port: str) -> Output | None:
        return next((output for output in self.outputs if output.port == port), None)


@dataclass(slots=True, eq=False)
class Request:
    spec: RequestSpec
    arrived_at: float
    index: int
    """Order of arrival."""
    jobs: dict[JobId, Job] = field(default_factory=dict)
    is_over: bool = False

    @property
    def untaken(self) -> int:
        return sum(job.spec.is_final and not job.taken for job in self.jobs.values())

    def dissolve(self) -> None:
        """Part with its jobs, at the very end: records that refer to each other would wait for a full collection."""
        for job in self.jobs.values():
            job.readers.clear()
        self.jobs.clear()


@dataclass(slots=True, eq=False)
class Server:
    spec: ServerSpec
    joined_at: float
    serving: frozenset[Role]
    """Roles for which it gets new jobs: those that it offers, without those set aside."""
    limits: dict[Role, int]
    offered: frozenset[Role] = frozenset()
    """During a switch only those that stay; none when it leaves."""
    unread: frozenset[Role] = frozenset()
    """Set aside: those who would read what its jobs leave do not reach it."""
    unfed: frozenset[Role] = frozenset()
    """Set aside: it does not reach those from whom its jobs would read."""
    sent: dict[Role, int] = field(default_factory=dict)
    attempts: dict[Epoch, Attempt] = field(default_factory=dict)
    """Committed here and not yet known to be gone, cancelled ones included."""
    holds: dict[str, Job] = field(default_factory=dict)
    """Handle → job whose output it is."""
    shown: dict[str, Job] = field(default_factory=dict)
    """Handle → preview that reads it."""
    roles: frozenset[Role] = frozenset()
    """Roles whose weights it holds, as far as it has said."""
    switching: tuple[Epoch, frozenset[Role]] | None = None
    roles_since: float = 0.0
    pinned: bool = False
    is_leaving: bool = False
    chained: Attempt | None = None
    """The last one for which a job was paused here: its request goes on here before that resumes."""

    @property
    def id(self) -> ServerId:
        return self.spec.id

    why_aside: str = ""

    @property
    def aside(self) -> frozenset[Role]:
        return self.unread | self.unfed

    def occupied(self) -> int:
        """Slots: members of a batch share one."""
        if len(self.attempts) < 2:
            return len(self.attempts)
        return len({attempt.batch for attempt in self.attempts.values()})

    def running(self) -> Attempt | None:
        """What computes here, if nothing else is here."""
        if len(self.attempts) != 1:
            return None
        (only,) = self.attempts.values()
        return only if only.job.state is JobState.RUNNING else None

    def remaining(self, now: float) -> float:
        """Predicted seconds until its device has nothing committed left."""
        if len(self.attempts) == 1:  # as it is most of the time
            return next(iter(self.attempts.values())).remaining(now)
        longest: dict[Epoch, float] = {}
        for attempt in self.attempts.values():
            longest[attempt.batch] = max(longest.get(attempt.batch, 0.0), attempt.remaining(now))
        return sum(longest.values())

    def may_run(self, role: Role) -> bool:
        return not self.is_leaving and role in self.serving and self.sent.get(role, 0) < self.limits.get(role, 0)

    @property
    def is_computing(self) -> bool:
        return any(attempt.job.state in COMMITTED for attempt in self.attempts.values())
