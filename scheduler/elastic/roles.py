"""Elastic roles: what ``scheduler.roles`` needs to know, read off the view, one circle of models at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, hypot, inf

from scheduler.cost.work import Work
from scheduler.elastic.book import Book
from scheduler.elastic.load_times import LoadTimes
from scheduler.elastic.machines import Circle, Machine, circles, machines
from scheduler.elastic.settings import ElasticSettings
from scheduler.elastic.suspects import Suspects
from scheduler.roles.demand import DemandEstimator
from scheduler.roles.fitting import all_fit
from scheduler.roles.gate import RoleGate, Snapshot
from scheduler.roles.problem import Duty, Problem, RoleNeed, RoleSet, ServerClass, Stage, maximal
from scheduler.roles.reading_ahead import ServerState
from scheduler.roles.solver import Plan
from scheduler.state import Request, Server, expected
from scheduler.view import View
from wire.types import REQUIRED, STAGES, ModelKey, Role, ServerId

BUSY_SECONDS = 10.0
"""Memory of the measured busy fraction."""
FAILED_SECONDS = 60.0
"""A server that could not take roles keeps those that it has for so long; twice as long after each further failure."""

IDLE_SECONDS = 60.0
"""A model that nobody has asked for in so long may lose its last holders to one that has none, if both find no room."""

Move = tuple[ServerId, frozenset[Role], str]


@dataclass(slots=True)
class _Model:
    demand: DemandEstimator
    asked_at: float = -inf
    works: dict[Role, Work] = field(default_factory=dict)
    """The latest job of each role: classes of servers are compared by it."""
    passed_at: dict[Role, float] = field(default_factory=dict)
    """When a request last asked for an optional stage."""

    def roles(self, now: float, waiting: Collection[Role] = ()) -> list[Role]:
        """That need a holder: not an optional one that nobody has asked for lately."""
        return [
            role
            for role in self.works
            if not STAGES[role].is_optional or role in waiting or now - self.passed_at[role] <= IDLE_SECONDS
        ]


@dataclass(slots=True)
class _Planned:
    """Models that are planned for together."""

    policy: RoleGate
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
        self._circles: dict[Circle, _Planned] = {}
        self._turn = 0
        self._planning: Circle | None = None
        self._wished: list[Move] = []
        self._ordered: dict[ServerId, frozenset[Role]] = {}
        self._refused: dict[ServerId, tuple[int, float]] = {}
        """Failures in a row, and until when the server is left alone."""
        self._loads = LoadTimes()

    def arrived(self, request: Request, view: View, now: float) -> None:
        model = self._model(request.spec.model)
        work: dict[Role, float] = {}
        for job in request.jobs.values():
            if not job.spec.optional and job.holder is None:
                work[job.spec.role] = work.get(job.spec.role, 0.0) + view.reference_seconds(job)
                model.works[job.spec.role] = job.spec.work
                if STAGES[job.spec.role].is_optional:
                    model.passed_at[job.spec.role] = now
        model.demand.arrived(work, now)
        model.asked_at = now

    def consider(self, view: View, now: float) -> tuple[Problem, str] | None:
        """The next circle's turn; those without a need for change pass it on."""
        self._suspects.keep_only(view.servers)
        self._note_refusals(view, now)
        present = circles(list(self._models), view)
        self._circles = {
            circle: self._circles.get(circle) or _Planned(RoleGate(self._settings.roles)) for circle in present
        }
        for number in range(len(present)):
            circle = present[(self._turn + number) % len(present)]
            planned = self._circles[circle]
            snapshot = planned.seen = self._snapshot(circle, view, now)
            problem = None if self._obstacle(circle, snapshot) else planned.policy.consider(snapshot, now)
            if problem is not None:
                self._turn += number + 1
                self._planning = circle
                return problem, _describe(snapshot)
        return None

    def accept(self, plan: Plan, view: View, now: float) -> Sequence[Move]:
        circle = self._planning
        planned = self._circles.get(circle) if circle is not None else None
        if circle is None or planned is None:
            return ()
        # Looked at anew: while the solver ran, servers have come, gone and begun other work.
        moves = planned.policy.accept(plan, self._snapshot(circle, view, now), now)
        changes = [
            (server.id, roles, move.reason)
            for move in moves
            for server, roles in self._apart(circle, move.server, move.roles, view)
            if roles != server.roles
        ]
        self._ordered |= {server: roles for server, roles, _ in changes}
        self._wished = [
            (server.id, roles - server.roles, wish.reason)
            for wish in planned.policy.wishes()
            for server, roles in self._apart(circle, wish.server, wish.roles, view)
            if roles - server.roles
        ]
        return changes

    def likely(self) -> Sequence[Move]:
        wished, self._wished = self._wished, []
        return wished

    def switched(
        self,
        server: Server,
        added: frozenset[Role],
        load_seconds: float,
        now: float,  # noqa: ARG002
        *,
        from_host: bool,
    ) -> None:
        """Measured loads correct what servers announce."""
        self._ordered.pop(server.id, None)
        self._refused.pop(server.id, None)
        self._loads.measured(server.spec, added, load_seconds, warm=from_host)

    def room(self, model: ModelKey, view: View, now: float) -> tuple[float, str]:
        """Seconds until a model that shares devices finds room for roles that nobody holds, and why; 0 if it does now.

        Infinite while other models need the room for which requests are under way.
        """
        (circle,) = circles([model], view)
        servers = [server for server in view.servers.values() if server.spec.model == model]
        needed = self._needed(model, now)
        unheld = [role for role in needed if not any(role in expected(server) for server in servers)]
        if len(circle) == 1 or not unheld:
            return 0.0, ""
        others = [key for key in circle if key != model and not self._is_idle(key, view, now)]
        at_work = [key for key in others if any(request.spec.model == key for request in view.live.values())]
        names = " and ".join(unheld)
        if not self._all_fit([model, *at_work], circle, view, now):
            beside = " beside the other models that are in use" if at_work else ""
            return inf, f"no server has room for the model's {names}{beside}"
        if self._all_fit([model, *others], circle, view, now):
            return 0.0, ""
        seconds = max(IDLE_SECONDS - now + self._models[key].asked_at for key in others if key not in at_work)
        return (
            seconds,
            f"there is room for the model's {names} once another model has been out of use for {IDLE_SECONDS:.0f} s",
        )

    def no_room(self, model: ModelKey, view: View, now: float) -> str:
        return self.room(model, view, now)[1]

    def explain(self) -> Mapping[str, tuple[Snapshot, str]]:
        """For people: per model, or models that share servers, what was seen when roles were last thought about, and
        why they move or do not."""
        return {
            ", ".join(circle): (seen, self._obstacle(circle, seen) or planned.policy.verdict)
            for circle, planned in self._circles.items()
            if (seen := planned.seen) is not None
        }

    # --- inside -------------------------------------------------------------------------------------------------------

    def _model(self, key: ModelKey) -> _Model:
        model = self._models.get(key)
        if model is None:
            demand = DemandEstimator(backlog_horizon=self._settings.backlog_horizon_seconds)
            model = self._models[key] = _Model(demand)
        return model

    def _needed(self, key: ModelKey, now: float) -> list[Role]:
        """Roles of the model that somebody must hold."""
        model = self._models.get(key)
        asked = model.roles(now) if model is not None else []
        return [role for role in Role if role in asked or role in REQUIRED]

    def _all_fit(self, models: Iterable[ModelKey], circle: Circle, view: View, now: float) -> bool:
        """Whether all roles of these models can be held at once. What is pinned stays."""
        wanted = {Duty(key, role) for key in models for role in self._needed(key, now)}
        free: list[ServerClass] = []
        for machine in machines(circle, view):
            if any(server.pinned for server in machine.servers):
                wanted -= machine.held
            elif not any(server.is_leaving for server in machine.servers):
                free.append(self._server_class(machine.class_name(view), machine, view))
        sizes = {stage: need.weights_bytes for cls in free for stage, need in cls.needs.items()}
        able = wanted & sizes.keys()  # who could take the others has gone, and may come back
        return all_fit(sorted(able, key=lambda stage: (-sizes[stage], str(stage))), free)

    def _apart(
        self, circle: Circle, machine: ServerId, stages: RoleSet, view: View
    ) -> Iterable[tuple[Server, frozenset[Role]]]:
        """What that means for each server of the machine, if it is still there."""
        found = next((each for each in machines(circle, view) if each.id == machine), None)
        return found.apart(stages) if found is not None else ()

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

    def _snapshot(self, circle: Circle, view: View, now: float) -> Snapshot:
        usable = [each for each in machines(circle, view) if all(map(self._is_usable, each.servers))]
        names = {machine.id: machine.class_name(view) for machine in usable}
        examples = {names[machine.id]: machine for machine in usable}
        classes = {name: self._server_class(name, machine, view) for name, machine in examples.items()}
        states = tuple(self._state(machine, names[machine.id], now) for machine in usable)
        demand: dict[Stage, float] = {}
        arriving: dict[Stage, float] = {}
        doubt: dict[Stage, float] = {}
        is_shared = len(circle) > 1
        for key in circle:
            asked = {} if is_shared and self._is_idle(key, view, now) else self._asked(key, now)
            for role, (coming, full, unsure) in asked.items():
                stage = Duty(key, role) if is_shared else role
                arriving[stage], demand[stage] = coming, full
                doubt[stage] = hypot(unsure, self._models[key].demand.rate_doubt()) if is_shared else unsure
        if is_shared and any(demand.values()):
            kept = _kept(classes, states, demand)
            demand |= kept
            arriving |= kept
        return Snapshot(
            classes=classes,
            servers=states,
            demand=demand,
            arriving=arriving,
            busy=self._busy(self._circles[circle], usable, now),
            doubt=doubt,
        )

    def _asked(self, key: ModelKey, now: float) -> dict[Role, tuple[float, float, float]]:
        """Of each role of a model: what arrives of it, the same with the backlog, and how unsure its share is."""
        model = self._models.get(key)
        if model is None:
            return {}
        waiting = {role: work for role, work in self._book.backlog(key).items() if role in model.works}
        full, coming = model.demand.demand(now, waiting), model.demand.demand(now)
        doubt = model.demand.doubt()
        roles = model.roles(now, [role for role, work in waiting.items() if work > 0])
        proportioned = _proportioned(coming, {role: full.get(role, 0.0) for role in roles})
        return {role: (coming.get(role, 0.0), proportioned[role], doubt.get(role, 0.0)) for role in roles}

    def _is_idle(self, key: ModelKey, view: View, now: float) -> bool:
        model = self._models.get(key)
        was_asked = model is not None and now - model.asked_at <= IDLE_SECONDS
        return not was_asked and all(request.spec.model != key for request in view.live.values())

    def _is_usable(self, server: Server) -> bool:
        is_aside = bool(server.aside) and server.roles <= server.aside
        return not (server.is_leaving or self._suspects.is_suspect(server.id) or is_aside)

    def _state(self, machine: Machine, cls: str, now: float) -> ServerState:
        servers = machine.servers
        refused = any(now < self._refused.get(server.id, (0, 0.0))[1] for server in servers)
        return ServerState(
            machine.id,
            cls,
            machine.held,
            machine.coming,
            pinned=refused or any(server.pinned or server.aside for server in servers),
            changed_at=machine.changed_at,
            drain_seconds=servers[0].remaining(now),
            in_host=machine.in_host,
            reads_ahead=all(server.spec.reads_ahead for server in servers),
        )

    def _server_class(self, name: str, machine: Machine, view: View) -> ServerClass:
        needs = {
            machine.stage(server, role): RoleNeed(
                speed=self._speed(role, server, view),
                weights_bytes=cost.weight_bytes,
                common_bytes=cost.common_bytes,
                activation_bytes=cost.activation_bytes,
                load_seconds=self._loads.seconds(server.spec, role, warm=False),
                warm_seconds=self._loads.seconds(server.spec, role, warm=True),
            )
            for server in machine.servers
            for role, cost in server.spec.capable.items()
        }
        return ServerClass(name, machine.memory_bytes, needs)

    def _speed(self, role: Role, server: Server, view: View) -> float:
        """Reference seconds of work per second."""
        spec = server.spec
        model = self._models.get(spec.model)
        work = model.works.get(role) if model is not None else None
        if work is None:
            return 1.0
        return view.cost.seconds(work, view.targets[spec.model]) / view.cost.seconds(work, spec.target, spec.name)

    def _busy(self, planned: _Planned, usable: Iterable[Machine], now: float) -> Mapping[Stage, float]:
        """Mean busy fraction of the machines that hold a role, from samples."""
        since = 0.0 if planned.sampled_at == -inf else max(0.0, now - planned.sampled_at)
        gain = 1 - exp(-since / BUSY_SECONDS)
        planned.sampled_at = now
        old, planned.busy = planned.busy, {}
        fractions: dict[Stage, list[float]] = {}
        for machine in usable:
            before = old.get(machine.id, 0.0)
            planned.busy[machine.id] = before + gain * (machine.servers[0].is_computing - before)
            for stage in machine.stages({server.id: server.roles for server in machine.servers}):
                fractions.setdefault(stage, []).append(planned.busy[machine.id])
        return {stage: sum(some) / len(some) for stage, some in fractions.items()}

    def _obstacle(self, circle: Circle, snapshot: Snapshot) -> str:
        """Why there is nothing to plan, if so."""
        is_known = any(self._models[key].demand.is_known for key in circle if key in self._models)
        if not (is_known or snapshot.unheld()):
            return "too few requests have come to plan by"
        return "" if _may_improve(snapshot) else "every server holds all that it may"


def _kept(
    classes: Mapping[str, ServerClass], states: Sequence[ServerState], demand: Mapping[Stage, float]
) -> dict[Stage, float]:
    """Stages of idle models that are held: each keeps a holder, unless a stage that has none finds no room beside."""
    held = frozenset[Stage]().union(*(state.coming for state in states))
    unheld = [stage for stage in demand if stage not in held]
    return dict.fromkeys(held - demand.keys(), 0.0) if _have_room(classes, states, unheld) else {}


def _have_room(classes: Mapping[str, ServerClass], states: Sequence[ServerState], stages: Iterable[Stage]) -> bool:
    """Whether these fit beside all that is held, the largest placed first."""
    held = {state.id: state.coming for state in states}
    sizes = {stage: need.weights_bytes for cls in classes.values() for stage, need in cls.needs.items()}
    for stage in sorted(stages, key=lambda stage: -sizes.get(stage, 0)):
        able = [state for state in states if classes[state.cls].fits(held[state.id] | {stage})]
        if not able:
            return False
        held[able[0].id] |= {stage}
    return True


def _proportioned(coming: Mapping[Role, float], full: Mapping[Role, float]) -> dict[Role, float]:
    """As much as the ``full`` demand, backlog included, in the proportions of what arrives.

    Where a backlog happens to lie says nothing about what is to come: roles that follow it from stage to stage are
    always behind. A stage that only has a backlog keeps a trace of demand, since it needs a holder.
    """
    arriving = sum(coming.get(role, 0.0) for role in full)
    scale = max(1.0, sum(full.values()) / arriving) if arriving > 0 else 0.0
    return {role: max(scale * coming.get(role, 0.0), 1e-9 * work) for role, work in full.items()}


def _may_improve(snapshot: Snapshot) -> bool:
    """Whether some server could hold more, or something else, than it does: not where everything fits everywhere."""
    best = {name: maximal(cls.feasible_sets()) for name, cls in snapshot.classes.items()}
    return any(best[server.cls] != (server.coming,) for server in snapshot.servers)


def _describe(snapshot: Snapshot) -> str:
    demand = ", ".join(f"{role} {seconds:.2f}" for role, seconds in snapshot.demand.items())
    busy = ", ".join(f"{role} {fraction:.0%}" for role, fraction in sorted(snapshot.busy.items(), key=str))
    return f"device-seconds asked for per second: {demand}; busy: {busy or 'nobody'}"
