"""Elastic roles: what ``scheduler.roles`` needs to know, read off the view, one model at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log

from scheduler.cost.work import Work
from scheduler.elastic.book import Book
from scheduler.elastic.settings import ElasticSettings
from scheduler.elastic.suspects import Suspects
from scheduler.roles.demand import DemandEstimator
from scheduler.roles.gate import RoleGate, ServerState, Snapshot
from scheduler.roles.problem import Problem, RoleNeed, ServerClass, maximal
from scheduler.roles.solver import Plan
from scheduler.state import Request, Server
from scheduler.view import View
from wire.types import ModelKey, Role, ServerId

BUSY_SECONDS = 10.0
"""Memory of the measured busy fraction."""
SPEED_CLASS = log(1.5)
"""Servers whose speeds differ by less than about this are planned for as equals."""
LOAD_GAIN = 0.3
FAILED_SECONDS = 60.0
"""A server that could not take roles keeps those that it has for so long; twice as long after each further failure."""
UNLIMITED = 1 << 62
"""Bytes of a server that did not say how many it has."""

Move = tuple[ServerId, frozenset[Role], str]


@dataclass(slots=True)
class _Model:
    policy: RoleGate
    demand: DemandEstimator
    works: dict[Role, Work] = field(default_factory=dict)
    """The latest job of each role: classes of servers are compared by it."""
    busy: dict[ServerId, float] = field(default_factory=dict)
    sampled_at: float = -inf
    seen: Snapshot | None = None
    """When roles were last thought about."""


class ElasticRoles:
    def __init__(self, settings: ElasticSettings, book: Book, suspects: Suspects):
        self.period_seconds = settings.roles.interval_seconds
        self._settings = settings
        self._book = book
        self._suspects = suspects
        self._models: dict[ModelKey, _Model] = {}
        self._turn = 0
        self._planning: ModelKey | None = None
        self._ordered: dict[ServerId, frozenset[Role]] = {}
        self._refused: dict[ServerId, tuple[int, float]] = {}
        """Failures in a row, and until when the server is left alone."""
        self._load_factor: dict[str, float] = {}
        """Device class → measured seconds of loading over announced ones."""

    def arrived(self, request: Request, view: View, now: float) -> None:
        model = self._model(request.spec.model)
        work: dict[Role, float] = {}
        for job in request.jobs.values():
            if not job.spec.optional:
                work[job.spec.role] = work.get(job.spec.role, 0.0) + view.reference_seconds(job)
                model.works[job.spec.role] = job.spec.work
        model.demand.arrived(work, now)

    def consider(self, view: View, now: float) -> tuple[Problem, str] | None:
        """The next model's turn; models without a need for change pass it on."""
        self._suspects.keep_only(view.servers)
        self._note_refusals(view, now)
        keys = list(self._models)
        for number in range(len(keys)):
            key = keys[(self._turn + number) % len(keys)]
            model = self._models[key]
            snapshot = model.seen = self._snapshot(key, model, view, now)
            problem = None if _obstacle(model, snapshot) else model.policy.consider(snapshot, now)
            if problem is not None:
                self._turn += number + 1
                self._planning = key
                return problem, _describe(snapshot)
        return None

    def accept(self, plan: Plan, view: View, now: float) -> Sequence[Move]:
        key = self._planning
        if key is None:
            return ()
        model = self._models[key]
        # Looked at anew: while the solver ran, servers have come, gone and begun other work.
        moves = model.policy.accept(plan, self._snapshot(key, model, view, now))
        for move in moves:
            self._ordered[move.server] = move.roles
        return [(move.server, move.roles, move.reason) for move in moves]

    def switched(self, server: Server, added: frozenset[Role], load_seconds: float, now: float) -> None:  # noqa: ARG002
        """Measured loads correct what servers announce."""
        self._ordered.pop(server.id, None)
        self._refused.pop(server.id, None)
        announced = sum(server.spec.capable[role].load_seconds for role in added)
        if announced > 0 and load_seconds > 0:
            old = self._load_factor.get(server.spec.device_class, 1.0)
            factor = log(old) + LOAD_GAIN * (log(load_seconds / announced) - log(old))
            self._load_factor[server.spec.device_class] = exp(factor)

    def explain(self) -> Mapping[ModelKey, tuple[Snapshot, str]]:
        """For people: per model what was seen when roles were last thought about, and why they move or do not."""
        return {
            key: (seen, _obstacle(model, seen) or model.policy.verdict)
            for key, model in self._models.items()
            if (seen := model.seen) is not None
        }

    # --- inside -------------------------------------------------------------------------------------------------------

    def _model(self, key: ModelKey) -> _Model:
        model = self._models.get(key)
        if model is None:
            demand = DemandEstimator(backlog_horizon=self._settings.backlog_horizon_seconds)
            model = self._models[key] = _Model(RoleGate(self._settings.roles), demand)
        return model

    def _note_refusals(self, view: View, now: float) -> None:
        """An order that is neither under way nor fulfilled has failed."""
        for server_id, roles in list(self._ordered.items()):
            server = view.servers.get(server_id)
            if server is not None and server.switching is not None:
                continue
            del self._ordered[server_id]
            if server is not None and server.roles != roles:
                failures = self._refused.get(server_id, (0, 0.0))[0] + 1
                self._refused[server_id] = failures, now + FAILED_SECONDS * 2.0 ** min(failures - 1, 6)
        for gone in self._refused.keys() - view.servers.keys():
            del self._refused[gone]

    def _snapshot(self, key: ModelKey, model: _Model, view: View, now: float) -> Snapshot:
        servers = [
            server
            for server in view.servers.values()
            if server.spec.model == key
            and not server.is_leaving
            and not self._suspects.is_suspect(server.id)
            and not (server.aside and server.roles <= server.aside)
        ]
        names = {server.id: _class_name(server, view) for server in servers}
        examples = {names[server.id]: server for server in servers}
        waiting = {role: work for role, work in self._book.backlog(key).items() if role in model.works}
        full = model.demand.demand(now, waiting)
        return Snapshot(
            classes={name: self._server_class(name, server, model, view) for name, server in examples.items()},
            servers=tuple(self._state(server, names[server.id], now) for server in servers),
            demand=_proportioned(model.demand.demand(now), {role: full[role] for role in model.works}),
            busy=self._busy(model, servers, now),
            doubt=model.demand.doubt(),
        )

    def _state(self, server: Server, cls: str, now: float) -> ServerState:
        refused = now < self._refused.get(server.id, (0, 0.0))[1]
        return ServerState(
            server.id,
            cls,
            server.roles - server.aside if server.switching is None else server.serving,
            server.switching[1] if server.switching is not None else None,
            pinned=server.pinned or refused or bool(server.aside),
            changed_at=server.roles_since if server.roles_since > server.joined_at else -inf,
            drain_seconds=server.remaining(now),
        )

    def _server_class(self, name: str, server: Server, model: _Model, view: View) -> ServerClass:
        spec = server.spec
        factor = self._load_factor.get(spec.device_class, 1.0)
        needs = {
            role: RoleNeed(
                speed=self._speed(role, server, model, view),
                weights_bytes=cost.weight_bytes,
                activation_bytes=cost.activation_bytes,
                load_seconds=factor * cost.load_seconds,
            )
            for role, cost in spec.capable.items()
        }
        return ServerClass(name, spec.memory_bytes or UNLIMITED, needs)

    def _speed(self, role: Role, server: Server, model: _Model, view: View) -> float:
        """Reference seconds of work per second."""
        spec, work = server.spec, model.works.get(role)
        if work is None:
            return 1.0
        return view.cost.seconds(work, view.targets[spec.model]) / view.cost.seconds(work, spec.target, spec.name)

    def _busy(self, model: _Model, servers: Iterable[Server], now: float) -> Mapping[Role, float]:
        """Mean busy fraction of the servers that hold a role, from samples."""
        since = 0.0 if model.sampled_at == -inf else max(0.0, now - model.sampled_at)
        gain = 1 - exp(-since / BUSY_SECONDS)
        model.sampled_at = now
        old, model.busy = model.busy, {}
        fractions: dict[Role, list[float]] = {}
        for server in servers:
            before = old.get(server.id, 0.0)
            model.busy[server.id] = before + gain * (server.is_computing - before)
            for role in server.roles:
                fractions.setdefault(role, []).append(model.busy[server.id])
        return {role: sum(some) / len(some) for role, some in fractions.items()}


def _obstacle(model: _Model, snapshot: Snapshot) -> str:
    """Why there is nothing to plan, if so."""
    if not (model.demand.is_known or snapshot.unheld()):
        return "too few requests have come to plan by"
    return "" if _may_improve(snapshot) else "every server holds all that it may"


def _proportioned(coming: Mapping[Role, float], full: Mapping[Role, float]) -> dict[Role, float]:
    """As much as the ``full`` demand, backlog included, in the proportions of what arrives.

    Where a backlog happens to lie says nothing about what is to come: roles that follow it from stage to stage are
    always behind. A stage that only has a backlog keeps a trace of demand, since it needs a holder.
    """
    arriving = sum(coming[role] for role in full)
    scale = max(1.0, sum(full.values()) / arriving) if arriving > 0 else 0.0
    return {role: max(scale * coming[role], 1e-9 * work) for role, work in full.items()}


def _may_improve(snapshot: Snapshot) -> bool:
    """Whether some server could hold more, or something else, than it does: not where everything fits everywhere."""
    best = {name: maximal(cls.feasible_sets()) for name, cls in snapshot.classes.items()}
    return any(best[server.cls] != (server.coming,) for server in snapshot.servers)


def _class_name(server: Server, view: View) -> str:
    """Servers of one class can hold the same, equally fast."""
    spec = server.spec
    slowness = round(log(view.cost.speed(spec.name)) / SPEED_CLASS)
    sizes = ",".join(
        f"{role}:{cost.weight_bytes}+{cost.activation_bytes}" for role, cost in sorted(spec.capable.items())
    )
    return f"{spec.device_class}/{spec.target.precision}/{spec.memory_bytes}/{sizes}/{slowness:+d}"


def _describe(snapshot: Snapshot) -> str:
    demand = ", ".join(f"{role} {seconds:.2f}" for role, seconds in snapshot.demand.items())
    busy = ", ".join(f"{role} {fraction:.0%}" for role, fraction in sorted(snapshot.busy.items()))
    return f"device-seconds asked for per second: {demand}; busy: {busy or 'nobody'}"
