"""The decisions that the core leaves open, as one record of small parts. Each part is pure.

The defaults serve in order of arrival and admit up to a bound; ``scheduler.elastic`` replaces them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from scheduler.coming import Coming
from scheduler.cost.model import CostModel
from scheduler.queue import Key, KeyQueue, StageQueue
from scheduler.roles.solver import Plan
from scheduler.spec import Timings
from scheduler.state import Attempt, Job, Request, Server
from wire.record import record
from wire.types import ModelKey, Role, ServerId

if TYPE_CHECKING:
    from scheduler.roles.problem import Problem
    from scheduler.view import View


@record(frozen=True, slots=True)
class Verdict:
    """Of admission."""

    admitted: bool
    predicted_seconds: float
    """Until the last picture."""
    retry_after_seconds: float = 0.0
    reason: str = ""
    code: str = ""
    """The reason in one word, where it does not admit: ``full``, ``deadline``."""


class Admission(Protocol):
    def decide(self, request: Request, view: View, now: float) -> Verdict: ...

    def seconds_left(self, request: Request, view: View, now: float) -> float:
        """Predicted for a request under way, until its last picture. Changes nothing."""


class Line(Protocol):
    """The requests of one model that wait, in the order in which they would be served if no others came."""

    def ahead(self, job: Job) -> int:
        """Requests that go before the one of this job, which waits in a queue and need not be in the line itself."""


class Order(Protocol):
    def key(self, job: Job, view: View, now: float) -> Key:
        """Smaller goes first. Called once, when the job joins its queue."""

    def queue(self) -> StageQueue:
        """A new queue for one (model, stage)."""

    def first(self, jobs: Sequence[Job]) -> Job:
        """Of the best jobs of several models, all in their queues, which a device that serves them takes first."""

    def line(self, jobs: Iterable[Job], view: View) -> Line:
        """Of jobs of one model that wait in its queues, one of each request."""


class Placement(Protocol):
    def role(self, server: Server, heads: Mapping[Role, Job], view: View, now: float) -> Role:
        """Which of the roles with waiting jobs the server serves next."""

    def server(self, job: Job, candidates: Sequence[Server], view: View, now: float) -> Server:
        """Which of the servers with a free slot gets the job. ``candidates`` may be a sample."""

    def lead_seconds(self, server: Server) -> float:
        """How long before its device is free a server gets its next job, to fetch inputs meanwhile."""

    def withholds(self, server: Server, role: Role, view: View, now: float) -> bool:
        """Whether the server gets no job of this role although it has a slot free: others will do better."""


class Batching(Protocol):
    def most(self, job: Job, server: Server, view: View) -> int:
        """How many like this job may compute together there, itself included; 1: it has the device alone."""

    def joins(self, job: Job, candidates: Sequence[Server], view: View, now: float) -> Server | None:
        """Which of these servers gets the job, to compute together with all that it has; None: the job rather waits.

        Each has one group, of the job's kind and with room for it (``Server.sharing``).
        """

    def makes_way(
        self, job: Job, following: Sequence[Job], candidates: Sequence[Server], view: View, now: float
    ) -> Server | None:
        """Which of these servers' groups pauses between two steps for a job of another role; None: it rather waits.

        What is ``following`` it, of its request, is of the group's kind and would join it then.
        """


class Preemption(Protocol):
    keep_seconds: float
    """How long a device waits for the next job of a request that took it from another before that one resumes."""

    def victim(self, job: Job, view: View, now: float) -> Server | None:
        """A server whose running job should give way to ``job``, which found no free slot."""

    def may_yield(self, server: Server, job: Job, view: View, now: float) -> bool:
        """Whether this server could be the one. Asked whenever something happened there, so quick to tell."""

    def lets_in(self, server: Server, preview: Job, view: View, now: float) -> bool:
        """Whether the job that runs there gives way to an intermediate picture, which would otherwise come too late."""


class Previews(Protocol):
    def keeps(self, preview: Job, view: View, now: float) -> bool:
        """Whether the finished picture waits for this intermediate one, which has just been shown."""


class Migration(Protocol):
    def worth(self, attempt: Attempt, view: View, now: float) -> str:
        """Why this dit attempt had better go on elsewhere, from its next step; empty if it had not."""


class Guidance(Protocol):
    def helper(self, attempt: Attempt, able: Iterable[Server], view: View) -> tuple[Server, float] | None:
        """Which of these, which have nothing to do, computes half of the attempt's guided steps, and the share of its
        time that it then takes; None where that does not pay."""


class RolePolicy(Protocol):
    """Called every ``period_seconds``; the solver in between runs off the event loop."""

    period_seconds: float

    def arrived(self, request: Request, view: View, now: float) -> None: ...

    def consider(self, view: View, now: float) -> tuple[Problem, str] | None: ...

    def accept(self, plan: Plan, view: View, now: float) -> Sequence[tuple[ServerId, frozenset[Role], str]]: ...

    def likely(self) -> Sequence[tuple[ServerId, frozenset[Role], str]]:
        """Asked after ``accept``: roles that should be read into host memory, as they may come."""

    def switched(
        self, server: Server, added: frozenset[Role], load_seconds: float, now: float, *, from_host: bool
    ) -> None:
        """Whoever ordered it. ``load_seconds``: what loading ``added`` took, ``from_host`` memory or from files."""


class Room(Protocol):
    def no_room(self, model: ModelKey, view: View, now: float) -> str:
        """Why nobody holds all roles of the model, where that is for want of room; otherwise empty."""


class Observer:
    """Told what happens, so that policies can keep their books. It must change nothing of the core."""

    def opened(self, request: Request, view: View, now: float) -> None:
        """It was admitted; its jobs are not queued yet."""

    def queued(self, job: Job, now: float) -> None:
        """It joined its queue, perhaps once more."""

    def committed(self, attempt: Attempt, view: View, now: float) -> None:
        """It is on its server's record."""

    def done(self, attempt: Attempt, timings: Timings, now: float) -> None:
        """With a result."""

    def failed(self, attempt: Attempt, *, is_fault: bool, now: float) -> None:
        """``is_fault``: of its server, as far as can be told; not of an input that was lost."""

    def handed_over(self, attempt: Attempt, timings: Timings, now: float) -> None:
        """It has ended with some of its steps done, from which another goes on."""

    def over(self, request: Request, *, finished: bool) -> None:
        """Finished, failed or cancelled."""


class AdmitUpTo:
    """Admits while fewer than ``limit`` requests are under way."""

    def __init__(self, limit: int = 1000):
        self._limit = limit

    def decide(self, request: Request, view: View, now: float) -> Verdict:
        predicted = view.naive_seconds(request, now)
        if view.requests < self._limit:
            return Verdict(True, predicted)
        reason = f"{self._limit} requests are under way"
        return Verdict(False, predicted, retry_after_seconds=predicted, reason=reason, code="full")

    def seconds_left(self, request: Request, view: View, now: float) -> float:
        return view.naive_seconds(request, now)


class KeyLine:
    """By key."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._keys = sorted(job.queued_key for job in jobs if job.queued_key is not None)

    def ahead(self, job: Job) -> int:
        return bisect_left(self._keys, job.queued_key or ())


class FirstCome:
    """By priority, then in order of arrival; later stages of an older request go before a younger one's.

    What nobody was promised goes last.
    """

    def key(self, job: Job, view: View, now: float) -> Key:  # noqa: ARG002
        return (job.gives_way, -job.request.spec.priority, job.request.index)

    def queue(self) -> StageQueue:
        return KeyQueue()

    def first(self, jobs: Sequence[Job]) -> Job:
        return min(jobs, key=lambda job: job.queued_key or ())

    def line(self, jobs: Iterable[Job], view: View) -> Line:  # noqa: ARG002
        return KeyLine(jobs)


class Downstream:
    """Finish what was begun before beginning anew; the fastest server first."""

    def __init__(self, lead_seconds: float = 0.5):
        self._lead_seconds = lead_seconds

    def role(self, server: Server, heads: Mapping[Role, Job], view: View, now: float) -> Role:  # noqa: ARG002
        heads = {role: job for role, job in heads.items() if not job.gives_way} or heads
        return next(role for role in reversed(Role) if role in heads)

    def server(self, job: Job, candidates: Sequence[Server], view: View, now: float) -> Server:
        return min(
            candidates, key=lambda server: (server.remaining(now) + view.seconds(job, server), server.is_helping)
        )

    def lead_seconds(self, server: Server) -> float:  # noqa: ARG002
        return self._lead_seconds

    def withholds(self, server: Server, role: Role, view: View, now: float) -> bool:  # noqa: ARG002
        return False


class OneByOne:
    def most(self, job: Job, server: Server, view: View) -> int:  # noqa: ARG002
        return 1

    def joins(self, job: Job, candidates: Sequence[Server], view: View, now: float) -> Server | None:  # noqa: ARG002
        return None

    def makes_way(
        self,
        job: Job,  # noqa: ARG002
        following: Sequence[Job],  # noqa: ARG002
        candidates: Sequence[Server],  # noqa: ARG002
        view: View,  # noqa: ARG002
        now: float,  # noqa: ARG002
    ) -> Server | None:
        return None


@dataclass(slots=True)
class Policies:
    admission: Admission = field(default_factory=AdmitUpTo)
    order: Order = field(default_factory=FirstCome)
    placement: Placement = field(default_factory=Downstream)
    batching: Batching = field(default_factory=OneByOne)
    preemption: Preemption | None = None
    migration: Migration | None = None
    guidance: Guidance | None = None
    previews: Previews | None = None
    """None: all of them go behind everything that was promised."""
    roles: RolePolicy | None = None
    coming: Coming = field(default_factory=Coming)
    """To be told who starts servers."""
    room: Room | None = None
    cost: CostModel = field(default_factory=CostModel)
    max_failures: int = 3
    """Reported errors after which a job's request fails."""
    max_losses: int = 3
    """Servers that may die during a job before its request fails as poison."""
    observers: Iterable[Observer] = ()
