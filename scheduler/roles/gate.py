"""When to think about roles, and which moves of a plan to make: the gate around the solver.

``consider`` runs on the scheduler's tick and is cheap; the plan is made elsewhere; ``accept`` judges it against the
state of the moment it came back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from scheduler.roles.alternation import CARRIED, Alternation
from scheduler.roles.problem import Group, Problem, RoleSet, Server, ServerClass, Stage, combined, in_order, named
from scheduler.roles.reading_ahead import ReadingAhead, RoleMove, ServerState
from scheduler.roles.solver import Plan
from wire.types import ServerId

LIKELY = 0.5
"""Of the least gain, from which on servers read ahead what they would be given."""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    interval_seconds: float = 1.0
    """Between two plans."""
    light_load: float = 0.6
    """Nothing moves while every stage is less busy than this."""
    least_gain: float = 0.03
    """Share by which the capacity must rise."""
    standard_errors: float = 0.5
    """It must not fall either if the demand of any one role is so far from what it seems to be."""
    dwell_seconds: float = 10.0
    """A server keeps new roles at least that long."""
    moving_share: float = 0.5
    """Of all servers, at most so many switch at one time, but always one."""
    payback_seconds: float = 120.0
    """Time within which a plan must have saved what its switches cost."""
    exclusive: bool = False
    """One role per server, as in the paper."""

    def __post_init__(self) -> None:
        if not 0 < self.moving_share <= 1:
            raise ValueError(f"moving_share is above 0 and at most 1, not {self.moving_share}")
        for name in (
            "interval_seconds",
            "light_load",
            "least_gain",
            "standard_errors",
            "dwell_seconds",
            "payback_seconds",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is 0 or more, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One model's servers and load. Servers that drain or are suspect are left out."""

    classes: Mapping[str, ServerClass]
    servers: tuple[ServerState, ...]
    demand: Mapping[Stage, float]
    """Reference device-seconds per second of every role of the model, see ``DemandEstimator.demand``."""
    busy: Mapping[Stage, float] = field(default_factory=dict)
    """Measured: mean busy fraction of the servers that hold the role."""
    arriving: Mapping[Stage, float] = field(default_factory=dict)
    """The same without the backlog's share; none: the same."""
    doubt: Mapping[Stage, float] = field(default_factory=dict)
    """Relative standard error of each role's share of the demand; none: taken as exact."""

    def unheld(self) -> RoleSet:
        """Roles with work that no server holds or is about to."""
        held = {role for server in self.servers for role in server.coming}
        return frozenset(role for role, demand in self.demand.items() if demand > 0 and role not in held)


class RoleGate:
    def __init__(self, settings: PolicySettings | None = None):
        self._settings = settings or PolicySettings()
        self._considered_at = -inf
        self._ahead = ReadingAhead()
        self._alternation = Alternation()
        self._both: Mapping[Stage, float] | None = None
        """What the latest plan was asked for instead of the demand."""
        self.verdict = "nothing was asked for yet"
        """For people: why roles move, or do not, since it was last thought about."""

    def consider(self, snapshot: Snapshot, now: float) -> Problem | None:
        """The problem to be planned for, or None to leave everything as it is."""
        if not snapshot.servers or not any(snapshot.demand.values()):
            self.verdict = "no work is asked for" if snapshot.servers else "no server may be planned for"
            return None
        if now - self._considered_at < self._settings.interval_seconds:
            return None
        urgent = bool(snapshot.unheld())
        if not urgent and self._is_light(snapshot):
            self.verdict = f"every stage is less than {self._settings.light_load:.0%} busy: nothing moves"
            return None
        self._considered_at = now
        self.verdict = "a plan is being made"
        self._both = None if urgent else self._alternation.planned(snapshot.arriving or snapshot.demand, now)
        return Problem(
            classes=snapshot.classes,
            servers=tuple(self._server(server, now, urgent=urgent) for server in snapshot.servers),
            demand=self._both or snapshot.demand,
            exclusive=self._settings.exclusive,
        )

    def accept(self, plan: Plan, snapshot: Snapshot, now: float) -> tuple[RoleMove, ...]:
        """The moves to make now; none when the plan is not worth it, or the servers have changed meanwhile."""
        urgent = snapshot.unheld()
        if self._both is not None and not urgent:
            if not self._alternation.is_carried(self._both, plan.capacity, now):
                self.verdict, self._considered_at = "no roles can carry both of two mixes that alternate", -inf
                return ()
            if plan.present * CARRIED >= 1:
                self.verdict = f"two mixes alternate, and roles carry both: {plan.present:.2f} × the larger demands"
                return ()
            snapshot = replace(snapshot, demand=self._both)
        if not plan.changes or not (urgent or self._is_worth_it(plan, snapshot, now)):
            self.verdict = self._why_not(plan)
            if plan.changes and plan.capacity > plan.present * (1 + LIKELY * self._settings.least_gain):
                for move in self._possible(plan, snapshot, urgent):
                    self._ahead.is_ready(_state(snapshot, move), move.roles, _cold(plan, move), now)
            return ()
        chosen = self._possible(plan, snapshot, urgent)
        moves = tuple(move for move in chosen if urgent or self._is_ready(plan, snapshot, move, now))
        for move in moves:
            self._ahead.forget(move.server)
        if moves and self._both is None:
            self._alternation.moved(snapshot.arriving or snapshot.demand, now)
        reading = f"; {len(chosen) - len(moves)} read weights ahead" if len(moves) < len(chosen) else ""
        others = len(plan.changes) - len(chosen)
        waiting = f"; the others wait for what is under way, or hold a role last: {others}" if others else ""
        self.verdict = f"{len(moves)} servers move: {_reason(plan, urgent)}{reading}{waiting}"
        return moves

    def wishes(self) -> tuple[RoleMove, ...]:
        """Servers that should read roles ahead, each once; asked for after ``accept``."""
        return self._ahead.take()

    def _is_ready(self, plan: Plan, snapshot: Snapshot, move: RoleMove, now: float) -> bool:
        """A server that gives nothing up serves on while it reads; any other keeps its roles until it has read."""
        state = _state(snapshot, move)
        return state.roles <= move.roles or self._ahead.is_ready(state, move.roles, _cold(plan, move), now)

    def _why_not(self, plan: Plan) -> str:
        if not plan.changes:
            return f"no free server could do better: capacity {plan.present:.2f} × the demand"
        return (
            f"{len(plan.changes)} moves would raise the capacity from {plan.present:.2f} to {plan.capacity:.2f} × the "
            f"demand: less than {self._settings.least_gain:.0%} more, too unsure, or saving less in "
            f"{self._settings.payback_seconds:g} s than they cost"
        )

    def _is_light(self, snapshot: Snapshot) -> bool:
        limit = self._settings.light_load
        return max(snapshot.busy.values(), default=0.0) < limit and utilisation(snapshot) < limit

    def _server(self, server: ServerState, now: float, *, urgent: bool) -> Server:
        fresh = now - server.changed_at < self._settings.dwell_seconds and not urgent
        moving = server.switching_to is not None
        fixed = server.pinned or moving or fresh
        return Server(
            server.id, server.cls, server.coming, fixed, drain_seconds=server.drain_seconds, warm=server.in_host
        )

    def _is_worth_it(self, plan: Plan, snapshot: Snapshot, now: float) -> bool:
        if plan.present <= 0:
            return True
        gains = plan.capacity > plan.present * (1 + self._settings.least_gain)
        return gains and self._saved(plan) > self._switch_cost(plan, snapshot, now) and self._is_safe(plan, snapshot)

    def _is_safe(self, plan: Plan, snapshot: Snapshot) -> bool:
        """Whether nothing would be lost if there were a little more, or less, to do in any one role than it seems."""
        before = Counter((server.cls, server.roles) for server in plan.problem.servers)
        after = Counter((server.cls, plan.assignment[server.id]) for server in plan.problem.servers)
        planned = replace(snapshot, classes=plan.problem.classes)  # since then one may have died out
        return all(
            _utilisation(other, after) <= _utilisation(other, before)
            for other in _doubtful(planned, self._settings.standard_errors)
        )

    def _saved(self, plan: Plan) -> float:
        """Server-seconds by which the demand of the payback time gets cheaper."""
        seconds = self._settings.payback_seconds * len(plan.problem.servers)
        return seconds * (1 / plan.present - 1 / plan.capacity)

    def _switch_cost(self, plan: Plan, snapshot: Snapshot, now: float) -> float:
        """Server-seconds in which servers that give roles up do not have the others yet; these come out of host memory
        where they can be read ahead. A server that gives nothing up is used throughout.
        """
        states = {server.id: server for server in snapshot.servers}
        cost = 0.0
        for server in plan.problem.servers:
            roles, state = plan.assignment[server.id], states.get(server.id)
            if state is None or server.roles <= roles:
                continue
            needs = plan.problem.classes[server.cls].needs
            ahead = roles - server.roles if self._ahead.may_read(state, roles, now) else server.warm
            cost += sum(needs[role].seconds(warm=role in ahead) for role in roles - server.roles)
        return cost

    def _possible(self, plan: Plan, snapshot: Snapshot, urgent: RoleSet) -> tuple[RoleMove, ...]:
        """Within the limit of switches at one time, and never the last warm holder of a role."""
        states = {server.id: server for server in snapshot.servers}
        moving = sum(server.switching_to is not None for server in snapshot.servers)
        budget = max(1, int(self._settings.moving_share * len(states))) - moving
        warm = Counter(role for server in snapshot.servers for role in server.warm)
        planned_from = {server.id: server.roles for server in plan.problem.servers}
        moves: list[RoleMove] = []
        for server, roles in self._neediest_first(plan, snapshot):
            state = states.get(server)
            if len(moves) >= budget:
                break
            if state is None or state.pinned or state.switching_to or state.roles != planned_from[server]:
                continue
            leaves = state.roles - roles
            if any(warm[role] <= 1 for role in leaves & snapshot.demand.keys()):
                continue
            warm.subtract(leaves)  # two moves that are harmless one by one may take a role's last two holders
            moves.append(RoleMove(server, roles, _reason(plan, roles & urgent)))
        return tuple(moves)

    def _neediest_first(self, plan: Plan, snapshot: Snapshot) -> list[tuple[ServerId, RoleSet]]:
        """Changes by the scarcest role that they add, then by who has it in host memory, then by who is free first: not
        all of them may happen at once.
        """
        groups = _groups(snapshot)
        scarcity = {role: _load(snapshot, groups, (role,)) for role in snapshot.demand}
        planned = {server.id: server for server in plan.problem.servers}

        def order(change: tuple[ServerId, RoleSet]) -> tuple[float, int, float, ServerId]:
            server = planned[change[0]]
            scarcest = max((scarcity.get(role, 0.0) for role in change[1] - server.roles), default=0.0)
            cold = len(change[1] - server.roles - server.warm)
            return -scarcest, cold, server.drain_seconds, server.id

        return sorted(plan.changes.items(), key=order)


def utilisation(snapshot: Snapshot) -> float:
    """How busy the busiest stages must be with the roles as they are; infinite when a role has no holder.

    For every set of roles: their demand over the speed of all servers that hold any of them. Exact where a server is
    equally fast at all roles, otherwise too low.
    """
    return _utilisation(snapshot, _groups(snapshot))


def _utilisation(snapshot: Snapshot, groups: Counter[Group]) -> float:
    roles = tuple(snapshot.demand)
    return max((_load(snapshot, groups, in_order(some)) for some in combined(roles)), default=0.0)


def _doubtful(snapshot: Snapshot, standard_errors: float) -> Iterator[Snapshot]:
    """The same with the demand of one role raised, or lowered, by what it is uncertain by."""
    for role in snapshot.demand:
        off = 1 + standard_errors * snapshot.doubt.get(role, 0.0)
        for factor in {off, 1 / off} - {1.0}:
            yield replace(snapshot, demand={**snapshot.demand, role: factor * snapshot.demand[role]})


def _groups(snapshot: Snapshot) -> Counter[Group]:
    return Counter((server.cls, server.coming) for server in snapshot.servers)


def _load(snapshot: Snapshot, groups: Counter[Group], roles: tuple[Stage, ...]) -> float:
    """Demand for these roles over the speed of all servers that hold any of them."""
    demand = sum(snapshot.demand[role] for role in roles)
    speed = sum(n * _best_speed(snapshot.classes[cls], held, roles) for (cls, held), n in groups.items())
    if not demand:
        return 0.0
    return demand / speed if speed else inf


def _best_speed(cls: ServerClass, held: RoleSet, roles: tuple[Stage, ...]) -> float:
    return max((cls.needs[role].speed for role in roles if role in held), default=0.0)


def _state(snapshot: Snapshot, move: RoleMove) -> ServerState:
    return next(server for server in snapshot.servers if server.id == move.server)


def _cold(plan: Plan, move: RoleMove) -> float:
    """Seconds that reading the move's roles from files takes at most."""
    server = next(server for server in plan.problem.servers if server.id == move.server)
    needs = plan.problem.classes[server.cls].needs
    return sum(needs[role].load_seconds for role in move.roles - server.roles - server.warm)


def _reason(plan: Plan, first: RoleSet) -> str:
    if first:
        return f"no server held {named(first)}"
    return f"capacity {plan.present:.2f} → {plan.capacity:.2f} × the demand"
