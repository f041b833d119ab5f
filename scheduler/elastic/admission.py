"""Whether a request will meet its deadline, and when it will be done.

Stage by stage: a job starts when the work that goes before it has been done by the servers that hold the stage. That is
the work ahead of it now (``book``), what comes later and overtakes it (as much as came lately, within the bypass
bound), and the turns of other tenants. The result is corrected by how wrong such predictions have been lately.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import log
from types import MappingProxyType

from scheduler.coming import Coming
from scheduler.cost.residuals import ResidualTracker
from scheduler.elastic.book import Book, promised
from scheduler.elastic.capacity import Capacity, Pace
from scheduler.elastic.fairness import Fairness
from scheduler.elastic.inflow import Inflow, Overtaking
from scheduler.elastic.lane import Rank
from scheduler.elastic.order import STAGE, StageOrder
from scheduler.elastic.settings import ElasticSettings
from scheduler.elastic.shared import seconds_until_held, work_of_others
from scheduler.policy import Observer, Verdict
from scheduler.spec import Timings
from scheduler.state import Attempt, Job, Request
from scheduler.transitions import JobState
from scheduler.view import View
from wire.record import record
from wire.types import ROLES, ModelKey, RequestId, Role

FIRST_SIGMA = 0.15
"""Assumed standard deviation of log(actual / predicted) before anything is known."""
ENOUGH = 48
"""Observations after which a tenant's own errors count."""
MAX_TRACKERS = 1024
QUEUEING = (1.5, 4.0)
"""Predicted time over service time at which predictions are told apart: the longer the queue, the less is known."""
MISSED_BY = 1.0
ROUNDS = 6
"""Of the fixed point between waiting longer and being overtaken by more."""


@record(frozen=True, slots=True)
class Errors:
    """How wrong predictions have been: a tenant's own, once there are enough of them, otherwise everybody's."""

    tenant: ResidualTracker
    everyone: ResidualTracker

    def factors(self, q: float) -> tuple[float, float]:
        """On a prediction: what makes it right in the middle, and what a share ``q`` of the outcomes stays under."""
        known = self.tenant if self.tenant.observations >= ENOUGH else self.everyone
        return known.quantile(0.5), known.quantile(q)

    def add(self, log_ratio: float) -> None:
        self.tenant.add(log_ratio)
        self.everyone.add(log_ratio)


@record(frozen=True, slots=True)
class _Promise:
    raw_seconds: float
    errors: Errors


@record(frozen=True, slots=True)
class _Stage:
    """A request's work at one stage."""

    role: Role
    jobs: tuple[Job, ...]
    rank: Rank
    work: float
    """Reference seconds of all jobs."""


@record(frozen=True, slots=True)
class _Rival:
    """Another tenant at a stage."""

    stock: float
    """Work that waits."""
    rate: float
    """Work that comes per second."""
    lead: float
    """How far it is behind the request's tenant on the virtual clock."""
    share: float

    def turns(self, virtual: float, wait: float) -> float:
        """What it gets while the request's tenant gets on by ``virtual``: its share, no more than it asks for."""
        return min(self.stock + self.rate * wait, max(0.0, (self.lead + virtual) * self.share))


@record(frozen=True, slots=True)
class _Ahead:
    """Work that goes before a request's at a stage: what waits now, what comes later, the turns of other tenants."""

    work: float
    """The request's own."""
    share: float
    """Of its tenant."""
    stock: float
    overtaking: Overtaking
    most: float
    """That may overtake."""
    bound: float
    """Work for which only those servers are good that have the adapters that the request needs …"""
    part: float
    """… and what they do of the rest: all of it where it needs none."""
    rivals: tuple[_Rival, ...]

    def work_before(self, wait: float) -> float:
        """If it starts there after ``wait`` seconds."""
        mine = self.stock + min(self.overtaking.within(wait), self.most)
        if not self.rivals:
            return mine
        # Tenants get on together on a clock of device-seconds over share. By the time the request is served, its tenant
        # has got on by all of ``mine`` and the request's own work; every rival, by then, to the same reading.
        virtual = (mine + self.work) / self.share
        return mine + sum(rival.turns(virtual, wait) for rival in self.rivals)


@record(frozen=True, slots=True)
class _Draft:
    """What is known of a request between its admission and its first step."""

    request: RequestId
    promise: _Promise
    stages: list[_Stage]


class PredictedCompletion(Observer):
    def __init__(
        self,
        settings: ElasticSettings,
        order: StageOrder,
        book: Book,
        fairness: Fairness,
        coming: Coming | None = None,
    ):
        self._settings = settings
        self._coming = coming or Coming()
        self._order = order
        self._book = book
        self._fairness = fairness
        self._inflow: dict[tuple[ModelKey, Role, str], Inflow] = {}
        self._trackers: dict[tuple[ModelKey, str, int], ResidualTracker] = {}
        """(model, "/" and a tenant or nothing for all, length of the queue)"""
        self._promises: dict[RequestId, _Promise] = {}
        self._draft: _Draft | None = None
        self._seen = 0.0
        """The latest time that anything happened."""

    def decide(self, request: Request, view: View, now: float) -> Verdict:
        to_do = (job for job in promised(request.jobs.values()) if job.holder is None)
        stages = self._stages(to_do, view, now)
        raw, own = self._raw_seconds(stages, request, view, now)
        errors = self._errors(request, raw / own if own else 1.0)
        self._draft = _Draft(request.spec.id, _Promise(raw, errors), stages)
        usual, late = (raw * factor for factor in errors.factors(self._settings.admission_quantile))
        # Where nothing goes before the request, refusing it would help nobody, and what it takes would never be learnt.
        bound = max(usual, late) if raw > own else usual
        excess = now + bound - request.spec.deadline
        if view.requests >= self._settings.max_requests:
            reason = f"{view.requests} requests are under way, as many as may be"
            return Verdict(False, usual, (usual - own) / 2, reason, "full")
        if excess > 0:
            allowed = request.spec.deadline - now
            reason = f"done in {usual:.1f} s, perhaps only in {late:.1f} s: its deadline is in {allowed:.1f} s"
            return Verdict(False, usual, excess, reason, "deadline")
        return Verdict(True, usual, reason=f"predicted {usual:.2f} s, of which {own:.2f} s are its own")

    def seconds_left(self, request: Request, view: View, now: float) -> float:
        left = [job for job in promised(request.jobs.values()) if not job.taken and job.holder is None]
        stages = self._stages([job for job in left if job.attempt is None], view, now)
        raw, _ = self._raw_seconds(stages, request, view, now, _ends(left, now))
        promise = self._promises.get(request.spec.id)
        usual, _ = promise.errors.factors(self._settings.admission_quantile) if promise is not None else (1.0, 1.0)
        return raw * usual

    def opened(self, request: Request, view: View, now: float) -> None:  # noqa: ARG002
        spec, draft, self._draft = request.spec, self._draft, None
        if draft is None or draft.request != spec.id:
            return
        self._promises[spec.id] = draft.promise
        for stage in draft.stages:
            key = (spec.model, stage.role, spec.tenant)
            inflow = self._inflow.get(key)
            if inflow is None:
                inflow = self._inflow[key] = Inflow(now)
            inflow.add(stage.rank.aged - self._order.aging * now, stage.work, now)

    def committed(self, attempt: Attempt, view: View, now: float) -> None:  # noqa: ARG002
        self._seen = now

    def done(self, attempt: Attempt, timings: Timings, now: float) -> None:  # noqa: ARG002
        self._seen = now

    def over(self, request: Request, *, finished: bool) -> None:
        """Learn from it: a missed deadline too, though not what its client or a server cut short."""
        promise = self._promises.pop(request.spec.id, None)
        missed = self._seen > request.spec.deadline - MISSED_BY
        if promise is not None and (finished or missed):
            promise.errors.add(log(max(self._seen - request.arrived_at, 1e-3) / promise.raw_seconds))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _raw_seconds(
        self,
        stages: list[_Stage],
        request: Request,
        view: View,
        now: float,
        ends: Mapping[Role, float] = MappingProxyType({}),
    ) -> tuple[float, float]:
        """Until its last picture, and what that would be with every server idle.

        The stages one after another, on a clock that begins now. A stage starts when the one before is through
        (``total``), and not before its servers have done what goes before this request there. That work does not wait
        for the request's earlier stages, so the two are compared and not added. ``ends``: when servers are through with
        those of its jobs that they have already.
        """
        model = request.spec.model
        capacity = Capacity(view, model, now, self._coming.expected(model, now))
        ahead = {stage.role: self._ahead(stage, request, capacity, now) for stage in stages}
        starts: dict[tuple[Role, ...], float] = {}
        """Of stages looked at together: with servers that hold every role, all stages ask for the same."""
        total = alone = 0.0
        if self._settings.elastic_roles:
            total = seconds_until_held(request.spec.model, [stage.role for stage in stages], view)
        for stage in stages:
            total = max(total, *(end for role, end in ends.items() if STAGE[role] < STAGE[stage.role]), 0.0)
            for together in _sharing(stage, stages, view):
                roles = tuple(other.role for other in together)
                if roles not in starts:
                    pace = capacity.pace(other.jobs[0] for other in together)
                    others = work_of_others(request.spec.model, roles, together[0].rank, view, self._book)
                    starts[roles] = _start([ahead[role] for role in roles], pace, others)
                total = max(total, starts[roles])
            own = _own_seconds(stage, view, capacity)
            total += own
            alone += own
        return max(total, *ends.values(), 1e-3), alone

    def _stages(self, jobs: Iterable[Job], view: View, now: float) -> list[_Stage]:
        by_role: dict[Role, list[Job]] = {}
        for job in jobs:
            by_role.setdefault(job.spec.role, []).append(job)
        return [
            _Stage(role, tuple(some), self._rank(some[0], view, now), sum(map(view.reference_seconds, some)))
            for role in ROLES
            if (some := by_role.get(role))
        ]

    def _rank(self, job: Job, view: View, now: float) -> Rank:
        """The one with which it waits, if it does."""
        return self._order.key(job, view, now) if job.queued_key is None else Rank.of(job.queued_key)

    def _ahead(self, stage: _Stage, request: Request, capacity: Capacity, now: float) -> _Ahead:
        model, tenant = request.spec.model, request.spec.tenant
        stocks = self._book.stocks(model, stage.role)
        mine, total = 0.0, 0.0
        if tenant in stocks:
            # A request under way is in the book itself.
            mine = stocks[tenant].ahead(stage.rank) - self._book.not_ahead(stage.jobs, stage.rank)
            total = stocks[tenant].total
        inflow = self._inflow.get((model, stage.role, tenant))
        overtaking = Overtaking()
        if inflow is not None:
            overtaking = inflow.overtaking(stage.rank.aged - self._order.aging * now, self._order.aging, now)
        return _Ahead(
            work=stage.work,
            share=self._fairness.share(tenant),
            stock=mine,
            overtaking=overtaking,
            most=stage.rank.allowance + self._settings.bypass_share * total,
            bound=self._book.needing(model, stage.role, stage.jobs[0].spec.adapters),
            part=capacity.share(stage.jobs[0]),
            rivals=tuple(self._rival(stage, other, request, now) for other in stocks if other != tenant),
        )

    def _rival(self, stage: _Stage, other: str, request: Request, now: float) -> _Rival:
        fairness, model = self._fairness, request.spec.model
        inflow = self._inflow.get((model, stage.role, other))
        return _Rival(
            stock=self._book.stocks(model, stage.role)[other].total,
            rate=inflow.rate(now) if inflow is not None else 0.0,
            lead=fairness.standing(request.spec.tenant) - fairness.standing(other),
            share=fairness.share(other),
        )

    def _errors(self, request: Request, slowdown: float) -> Errors:
        model = request.spec.model
        level = sum(slowdown > bound for bound in QUEUEING)
        everyone = self._known_errors((model, "", level))
        if len(self._trackers) > MAX_TRACKERS:
            del self._trackers[next(key for key in self._trackers if key[1])]
        return Errors(self._known_errors((model, f"/{request.spec.tenant}", level)), everyone)

    def _known_errors(self, key: tuple[ModelKey, str, int]) -> ResidualTracker:
        tracker = self._trackers.get(key)
        if tracker is None:
            tracker = self._trackers[key] = ResidualTracker(FIRST_SIGMA)
        return tracker


def _ends(jobs: Iterable[Job], now: float) -> dict[Role, float]:
    """Seconds until servers are through with those of the jobs that they have."""
    ends: dict[Role, float] = {}
    for job in jobs:
        if job.attempt is not None:
            # Whatever else the server has goes before a job that does not run yet, or not at present.
            running = job.state is JobState.RUNNING
            left = job.attempt.remaining(now) if running else job.attempt.server.remaining(now)
            ends[job.spec.role] = max(ends.get(job.spec.role, 0.0), left)
    return ends


def _start(ahead: list[_Ahead], pace: Pace, others: float) -> float:
    """Seconds until stages that share servers have done what goes before the request, ``others`` of other models.

    The longer it waits, the more comes that goes before it, and the longer it waits. From a wait of 0 upwards this ends
    at the smallest wait that agrees with itself; it does end, because what may overtake is bounded.
    """
    bound, part = sum(stage.bound for stage in ahead), min(stage.part for stage in ahead)

    def before(wait: float) -> float:
        work = sum(stage.work_before(wait) for stage in ahead)
        theirs = min(bound, work)
        return others + theirs + part * (work - theirs)

    start = pace.level(before(0.0))
    for _ in range(ROUNDS):
        later = pace.level(before(start))
        if later - start <= 0.01 * start:
            return later
        start = later
    return start


def _sharing(stage: _Stage, stages: list[_Stage], view: View) -> Iterator[list[_Stage]]:
    """The stage by itself, and together with those whose servers also hold it: neither may be overbooked."""
    yield [stage]
    model = stage.jobs[0].request.spec.model
    shared = [other for other in stages if view.shared(model, stage.role, other.role)]
    if len(shared) > 1:
        yield shared


def _own_seconds(stage: _Stage, view: View, capacity: Capacity) -> float:
    """Of the stage's jobs, with every server idle."""
    longest = max(stage.jobs, key=view.reference_seconds)
    holders = capacity.pace([longest])
    if not holders.servers:
        return stage.work
    each = view.reference_seconds(longest) * len(holders.servers) * holders.scale
    return max(stage.work, each) / holders.speed
