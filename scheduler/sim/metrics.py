"""What came of a simulation: one record per request, device time, roles over time, and figures made of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from math import ceil, inf, nan
from re import compile as pattern

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.cost.model import CostModel
from scheduler.sim.setup import Scenario
from scheduler.sim.workload import size_class
from scheduler.spec import RequestSpec
from wire.types import Epoch, JobId, RequestId, Role, ServerId, server_name

_SET = pattern(r"(?<=frozenset\(\{)[^}]*(?=\}\))")


class End(StrEnum):
    FINISHED = "finished"
    FAILED = "failed"
    """With a clean error."""
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    """The client hung up."""
    OPEN = "open"
    """Still under way when the simulation stopped (phases with a backlog); otherwise: lost."""


@dataclass(slots=True)
class Outcome:
    """Of one request. Times are virtual, seconds."""

    id: RequestId
    kind: str
    """See ``size_class``."""
    tenant: str
    images: int
    arrived: float
    deadline: float
    alone: float
    """True seconds that its longest chain takes on the fastest idle servers."""
    ended: float = inf
    end: End = End.OPEN
    code: str = ""
    predicted: float = nan
    """Seconds until the last picture, as predicted on admission."""
    model: str = ""

    @property
    def latency(self) -> float:
        return self.ended - self.arrived

    @property
    def slowdown(self) -> float:
        return self.latency / self.alone

    @property
    def met_deadline(self) -> bool:
        return self.end is End.FINISHED and self.ended <= self.deadline


@dataclass(frozen=True, slots=True)
class RoleChange:
    at: float
    server: str
    """Name."""
    roles: frozenset[Role]
    """Held from now on; while others load those that stay; none when it is gone."""


@dataclass(slots=True)
class Start:
    """Of one server of a pool; seconds of virtual time."""

    pool: str
    server: str
    ordered: float
    ready: float = inf
    """Introduced; infinite if it never was."""
    gone: float = inf


@dataclass(frozen=True, slots=True)
class Busy:
    server: str
    role: Role | None
    """None: loading weights."""
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Result:
    scenario: str
    requests: tuple[Outcome, ...]
    roles: tuple[RoleChange, ...]
    busy: tuple[Busy, ...]
    moves: tuple[tuple[float, str, str], ...]
    """Role changes ordered: time, server, reason."""
    tenant_seconds: dict[str, float]
    """Device-seconds of finished attempts."""
    attempts: Counter[Role]
    """Attempts ended with a result, per role: more than jobs where work was repeated."""
    events: int
    until: float
    starts: tuple[Start, ...] = ()
    """Of pools' servers."""

    def pool_seconds(self) -> float:
        """Server-seconds of pools, from each order to the server's end."""
        return sum(min(start.gone, self.until) - start.ordered for start in self.starts)

    def met_deadlines(self) -> float:
        """Share of all requests, refused ones among them, that got their pictures in time."""
        return sum(request.met_deadline for request in self.requests) / len(self.requests) if self.requests else 1.0

    def finished(self, since: float = 0.0, until: float = inf) -> list[Outcome]:
        """Those that arrived in the interval and got their pictures."""
        return [r for r in self.requests if r.end is End.FINISHED and since <= r.arrived < until]

    def throughput(self, since: float, until: float) -> float:
        """Requests finished per second in an interval, whenever they arrived."""
        count = sum(r.end is End.FINISHED and since <= r.ended < until for r in self.requests)
        return count / (until - since)

    def latencies(self, since: float = 0.0, until: float = inf) -> list[float]:
        return [r.latency for r in self.finished(since, until)]

    def slowdown_p99(self) -> dict[str, float]:
        """Of each kind."""
        kinds: defaultdict[str, list[float]] = defaultdict(list)
        for request in self.finished():
            kinds[request.kind].append(request.slowdown)
        return {kind: quantile(values, 0.99) for kind, values in sorted(kinds.items())}

    def busy_fraction(self, role: Role, since: float = 0.0, until: float | None = None) -> float:
        """Of the time of those servers that hold the role, spent on it."""
        end = self.until if until is None else until
        used = sum(_overlap(b.since, b.until, since, end) for b in self.busy if b.role is role)
        held = sum(_overlap(a, b, since, end) for roles, a, b in self._held() if role in roles)
        return used / held if held else nan

    def holders(self, role: Role, at: float) -> int:
        return sum(role in roles and a <= at < b for roles, a, b in self._held())

    def count(self, end: End) -> int:
        return sum(request.end is end for request in self.requests)

    def lost(self) -> int:
        """Neither a picture nor a clean error; without meaning where a backlog was cut off."""
        return self.count(End.OPEN)

    def deadline_misses(self) -> float:
        """Share of the admitted requests (whose clients stayed) that did not get their pictures in time."""
        admitted = [r for r in self.requests if r.end in (End.FINISHED, End.FAILED)]
        return 1 - sum(r.met_deadline for r in admitted) / len(admitted) if admitted else 0.0

    def wait_errors(self) -> list[float]:
        """Predicted over true latency, minus 1, of finished requests."""
        return [r.predicted / r.latency - 1 for r in self.finished() if r.latency > 0]

    def _held(self) -> list[tuple[frozenset[Role], float, float]]:
        """(roles, from, to) of every server."""
        spans, present = [], dict[str, RoleChange]()
        for change in self.roles:
            before = present.get(change.server)
            if before is not None:
                spans.append((before.roles, before.at, change.at))
            present[change.server] = change
        spans += [(last.roles, last.at, self.until) for last in present.values()]
        return spans


class Recorder:
    """Watches a simulation and makes its ``Result``."""

    def __init__(self, scenario: Scenario):
        self._scenario = scenario
        self._truth = CostModel(server.profile for server in scenario.setups)
        self._targets = {(server.model, server.target): server.slowness for server in scenario.setups}
        self._requests: dict[RequestId, Outcome] = {}
        self._roles: list[RoleChange] = []
        self._latest: dict[ServerId, frozenset[Role]] = {}
        self._busy: list[Busy] = []
        self._moves: list[tuple[float, str, str]] = []
        self._tenants: defaultdict[str, float] = defaultdict(float)
        self._tenant_of: dict[JobId, str] = {}
        self._running: dict[Epoch, tuple[JobId, Role]] = {}
        self._attempts: Counter[Role] = Counter()
        self._events = 0
        self._now = 0.0

    def result(self, starts: Sequence[Start] = ()) -> Result:
        """``starts``: of servers that were started for pools."""
        return Result(
            starts=tuple(starts),
            scenario=self._scenario.name,
            requests=tuple(self._requests.values()),
            roles=tuple(self._roles),
            busy=tuple(self._busy),
            moves=tuple(self._moves),
            tenant_seconds=dict(self._tenants),
            attempts=self._attempts,
            events=self._events,
            until=self._now,
        )

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None:
        self._events += 1
        self._now = now
        match event:
            case ev.RequestArrived(request=spec):
                self._requests[spec.id] = self._record(spec, now)
                self._tenant_of |= {each.id: spec.tenant for job in spec.jobs for each in (job, *job.previews)}
            case ev.RequestCancelled(request=request):
                self._end(request, End.CANCELLED, now)
            case ev.ServerJoined(server=server):
                self._held(server.id, server.roles, now)
            case ev.ServerLost(server=server_id):
                self._held(server_id, frozenset(), now)
            case ev.RolesReady(server=server_id, roles=roles) | ev.RolesFailed(server=server_id, roles=roles):
                self._held(server_id, roles, now)
            case ev.JobDone(epoch=epoch, timings=timings) if epoch in self._running:
                job, role = self._running.pop(epoch)
                self._attempts[role] += 1
                self._tenants[self._tenant_of[job]] += timings.compute / timings.batch
        for action in actions:
            self._did(action, now)

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None:
        self._busy.append(Busy(server, role, since, now))

    def _did(self, action: Action, now: float) -> None:
        match action:
            case do.Admit(request=request, predicted_seconds=seconds):
                self._requests[request].predicted = seconds
            case do.Reject(request=request):
                self._end(request, End.REJECTED, now)
            case do.Finish(request=request):
                self._end(request, End.FINISHED, now)
            case do.Fail(request=request, code=code):
                self._end(request, End.FAILED, now, code)
            case do.Run(role=role, job=job, epoch=epoch):
                self._running[epoch] = (job, role)
            case do.AssignRoles(server=server, roles=roles, reason=reason):
                self._moves.append((now, server_name(server), reason))
                self._held(server, self._latest.get(server, frozenset()) & roles, now)

    def _end(self, request: RequestId, end: End, now: float, code: str = "") -> None:
        outcome = self._requests[request]
        if outcome.end is End.OPEN:
            outcome.end, outcome.ended, outcome.code = end, now, code

    def _held(self, server: ServerId, roles: frozenset[Role], now: float) -> None:
        self._latest[server] = roles
        self._roles.append(RoleChange(now, server_name(server), roles))

    def _record(self, spec: RequestSpec, now: float) -> Outcome:
        works = {job.role: job.work for job in spec.jobs}
        dit = works[Role.DIT]
        return Outcome(
            id=spec.id,
            kind=size_class(dit),
            tenant=spec.tenant,
            images=sum(job.is_final for job in spec.jobs),
            model=spec.model,
            arrived=now,
            deadline=spec.deadline,
            alone=sum(
                min(
                    self._truth.seconds(work, target) * slow
                    for (model, target), slow in self._targets.items()
                    if model == spec.model
                )
                for work in works.values()
            ),
        )


class Digest:
    """A watcher that boils a run down to one text: equal runs, equal digests, in any process."""

    def __init__(self) -> None:
        self._hash = sha256()

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None:
        self._hash.update(_in_order(f"{now!r} {event!r} {actions!r}\n").encode())

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None:
        pass

    def text(self) -> str:
        return self._hash.hexdigest()


def quantile(values: Iterable[float], q: float) -> float:
    """The smallest value that at least the share ``q`` does not exceed; nan without values."""
    ranked: Sequence[float] = sorted(values)
    return ranked[max(0, ceil(q * len(ranked)) - 1)] if ranked else nan


def mean(values: Iterable[float]) -> float:
    """nan without values."""
    known = list(values)
    return sum(known) / len(known) if known else nan


def _overlap(a: float, b: float, since: float, until: float) -> float:
    return max(0.0, min(b, until) - max(a, since))


def _in_order(text: str) -> str:
    """A set shows its members in an order that differs from process to process."""
    return _SET.sub(lambda found: ", ".join(sorted(found[0].split(", "))), text)
