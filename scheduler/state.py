"""The scheduler's records of requests, jobs, attempts and servers. Only the modules of the core change them.

Each is one thing with an identity: they are compared, and hashed, as such.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from scheduler.sharing import ends, stretch
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
    group: Epoch
    """Epoch of the first of those that it computes together with; its own where it has the device alone."""
    committed_at: float
    predicted_seconds: float
    """Of the device, alone."""
    share: bool = False
    """Others of its kind may compute with it."""
    marginal: float = 1.0
    """What a further one of its kind costs, in jobs."""
    step: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    """As reported, company included."""
    preemptions: int = 0
    """Jobs that were let in before it goes on."""
    company: int = 0
    """Attempts that compute together now, this one among them; 0 while it doesn't compute."""
    most_company: int = 1
    """That it ever had."""
    _left: float = field(init=False)
    """Seconds that it would still need the device alone, at …"""
    _at: float = field(init=False)
    _done: float = field(init=False, default=0.0)
    """Of these, computed since its last report …"""
    _weighed: float = field(init=False, default=0.0)
    """… and times the company that it had."""
    is_leaving: bool = False
    """Its server was told to hand it over."""
    help: Help | None = None
    """Who computes half of its guided steps."""
    was_helped: bool = False
    """At any time: what it took says nothing of what such a job takes."""

    def __post_init__(self) -> None:
        self._left, self._at = self.predicted_seconds, self.committed_at

    def keep_company(self, company: int, now: float) -> None:
        """From now on so many compute together, itself included; 0: it pauses."""
        self._settle(now)
        self.company = company
        self.most_company = max(self.most_company, company)

    def reported(self, step: int, steps: int, step_seconds: float, now: float) -> float:
        """Take over its own pace; the mean company that it had since its last report, by work done."""
        self._settle(now)
        mean = self._weighed / self._done if self._done > 0 else max(1.0, self.company)
        self.step, self.steps, self.step_seconds = step, steps, step_seconds
        self._left = (steps - step) * step_seconds / stretch(mean, self.marginal)
        self._done = self._weighed = 0.0
        return mean

    def stretch(self, factor: float, now: float) -> None:
        """What is left of it takes so many times as long as before."""
        self._settle(now)
        self._left *= factor

    def left(self, now: float) -> float:
        """Predicted seconds that it would still need the device alone, 0 if overdue."""
        if self.company == 0:
            return max(0.0, self._left)
        return max(0.0, self._left - (now - self._at) / stretch(self.company, self.marginal))

    def remaining(self, now: float) -> float:
        """Predicted seconds until its end if nobody else comes, what is in line before its group left out."""
        group = self.server.group(self.group) if self.share else []
        if len(group) < 2:
            return self.left(now)
        return _ends(group, now)[group.index(self)]

    def _settle(self, now: float) -> None:
        if self.company:
            done = (now - self._at) / stretch(self.company, self.marginal)
            self._left -= done
            self._done += done
            self._weighed += done * self.company
        self._at = now


@dataclass(frozen=True, slots=True, eq=False)
class Help:
    """A server computes half of each guided step of another's attempt."""

    epoch: Epoch
    """By which the server knows it."""
    attempt: Attempt
    server: Server
    share: float
    """Of the time that the attempt needs alone, as predicted."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """How far a dit job has come, and from where it can go on."""

    step: int
    source: Input
    by: ServerSpec


@dataclass(slots=True, eq=False)
class Job:
    spec: JobSpec
    """Of one that was handed over, ``work`` is what is left of it."""
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
    stuck: int = 0
    """Servers that ended themselves because it gave no sign of life there."""
    avoid: set[ServerId] = field(default_factory=set)
    """Servers on which it is not to run again while another server serves its role; it then has the device alone.
    Changes only while it is in no queue."""
    unreached: int = 0
    """Attempts that ended because somebody could not be reached: nobody's failure."""
    losses: int = 0
    """Servers that died while they worked on it. From the first on it has the device alone."""
    preview_of: Job | None = None
    """The dit job that showed what this one decodes, if it is a preview …"""
    shown: Input | None = None
    """… and where that lies, until it has been read."""
    is_kept: bool = False
    """A preview that counts as promised until its first obstacle: the finished picture waits for it."""
    handed_over: HandedOver | None = None
    """Until another server has fetched it."""
    whole: JobSpec = field(init=False)
    """From its first step."""
    first_step: int = 0
    """Steps that need not be computed by its next, or its present, attempt."""
    moves: int = 0
    """Times that it was handed over."""
    queued_key: tuple[float, ...] | None = None
    """Its key while it is in a queue."""
    price: float = 0.0
    """Predicted reference seconds, as of …"""
    priced_at: int = -1
    """… this version of the cost model."""

    def __post_init__(self) -> None:
        self.whole = self.spec

    def goes_on_after(self, step: int) -> None:
        """Its next attempt begins there. Only while it is in no queue."""
        if step != self.first_step:
            left = max(1, self.whole.work.steps - step)
            self.spec = replace(self.whole, work=replace(self.whole.work, steps=left)) if step else self.whole
            self.first_step, self.priced_at = step, -1

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

    @property
    def gives_way(self) -> bool:
        """It goes behind everything that was promised."""
        return self.spec.optional and not self.is_kept

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
    id: ServerId = field(init=False)
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
    handed_over: dict[str, Job] = field(default_factory=dict)
    """Handle → job that goes on from it elsewhere."""
    roles: frozenset[Role] = frozenset()
    """Roles whose weights it holds, as far as it has said."""
    warm: frozenset[Role] = frozenset()
    """Others whose weights wait in its host memory, as far as it has said."""
    switching: tuple[Epoch, frozenset[Role]] | None = None
    owes_answer: bool = False
    """To an order of other roles, given since it joined."""
    roles_since: float = 0.0
    pinned: bool = False
    is_leaving: bool = False
    leaves_at: float | None = None
    """Whatever is left then."""
    help: Help | None = None
    """What it does for an attempt of another server. It is idle all the same."""
    helps_from: float = 0.0
    """It could not help lately, and is not asked before."""
    chained: Attempt | None = None
    """The last one for which a job was paused here: its request goes on here before that resumes."""

    adapted: set[str] = field(default_factory=set)
    """Adapters of jobs that it was given: they are likely to be resident there."""
    sharers: list[Server] = field(default_factory=list)
    """Servers that have its device, itself among them, where it is not the only one; one list for all of them."""

    why_aside: str = ""

    @property
    def aside(self) -> frozenset[Role]:
        return self.unread | self.unfed

    def __post_init__(self) -> None:
        self.id = self.spec.id

    def together(self, role: Role) -> int:
        """Attempts of a role that may compute at once where all share."""
        cost = self.spec.capable.get(role)
        return cost.together if cost is not None else 1

    def on_device(self) -> list[Attempt]:
        """What was committed to its device, for whichever model."""
        if not self.sharers:
            return list(self.attempts.values())
        return [attempt for server in self.sharers for attempt in server.attempts.values()]

    @property
    def is_idle(self) -> bool:
        """Nothing was committed to its device."""
        return not self.attempts and not (self.sharers and any(server.attempts for server in self.sharers))

    @property
    def is_helping(self) -> bool:
        """Its device is, with an attempt of another server."""
        return any(each.help is not None for each in self.sharers or (self,))

    def group(self, group: Epoch) -> list[Attempt]:
        """Attempts that compute together, or will, in the order in which they were committed."""
        return [attempt for attempt in self.attempts.values() if attempt.group == group]

    def sharing(self) -> list[Attempt]:
        """All that its device has, if that is one group of its own that others may join; otherwise nothing."""
        first = next(iter(self.attempts.values()), None)
        if first is None or not first.share:  # as it is most of the time
            return []
        attempts = list(self.attempts.values())
        if any(each.group != first.group for each in attempts):
            return []
        return attempts if not self.sharers or len(self.on_device()) == len(attempts) else []

    def regroup(self, group: Epoch, now: float) -> None:
        """One of this group has begun, paused or ended: the others' pace changes."""
        computing = [attempt for attempt in self.group(group) if attempt.company]
        for attempt in computing:
            attempt.keep_company(len(computing), now)

    def occupied(self) -> int:
        """Slots of its device: those that compute together share one."""
        if self.sharers:
            return len({attempt.group for attempt in self.on_device()})
        if len(self.attempts) < 2:
            return len(self.attempts)
        if len(self.attempts) == 2:
            one, other = self.attempts.values()
            return 1 if one.group == other.group else 2
        return len({attempt.group for attempt in self.attempts.values()})

    def running(self) -> Attempt | None:
        """What computes here, if nothing else is on its device."""
        if len(self.attempts) != 1 or (self.sharers and len(self.on_device()) != 1):
            return None
        (only,) = self.attempts.values()
        return only if only.job.state is JobState.RUNNING else None

    def remaining(self, now: float) -> float:
        """Predicted seconds until its device has nothing committed left."""
        if len(self.attempts) == 1 and not self.sharers:  # as it is most of the time
            return next(iter(self.attempts.values())).left(now)
        groups: dict[Epoch, list[Attempt]] = {}
        for attempt in self.on_device():
            groups.setdefault(attempt.group, []).append(attempt)
        return sum(max(_ends(group, now)) for group in groups.values())

    def may_run(self, role: Role, *, beside: int = 0) -> bool:
        """One more attempt, and so many ``beside`` it."""
        sent = self.sent.get(role, 0) + beside
        return not self.is_leaving and role in self.serving and sent < self.limits.get(role, 0)

    @property
    def is_computing(self) -> bool:
        """Its device is, for whichever model."""
        return any(attempt.job.state in COMMITTED for attempt in self.on_device())


def expected(server: Server) -> frozenset[Role]:
    """Roles that it holds once it has done as it was told."""
    return server.roles if server.switching is None else server.switching[1]


def _ends(group: list[Attempt], now: float) -> list[float]:
    """Seconds until each of the group is done."""
    first = group[0]
    if len(group) == 1:
        return [first.left(now)]
    most = first.server.together(first.job.spec.role)
    return ends([attempt.left(now) for attempt in group], first.marginal, most)
