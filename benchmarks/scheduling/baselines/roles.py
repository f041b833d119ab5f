"""Role policies to compare with: reactive thresholds, prediction alone, feedback alone, and the clairvoyant oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Protocol

from scheduler.roles.gate import PolicySettings, Snapshot
from scheduler.roles.gate import RoleGate as Gate
from scheduler.roles.problem import Problem, RoleSet, ServerClass
from scheduler.roles.problem import Server as Member
from scheduler.roles.reading_ahead import ServerState
from scheduler.roles.solver import Plan
from scheduler.state import Request, Server
from scheduler.view import View
from wire.types import REQUIRED, ModelKey, Role, ServerId

Moves = Sequence[tuple[ServerId, RoleSet, str]]
SAMPLE_SECONDS = 0.5
FIXED_GATE = PolicySettings(least_gain=0.10)
"""What was first asked of a move (docs/decisions/0005). Ours asks less where it is sure, which these cannot tell."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The servers of a scenario as the role solver sees them."""

    model: ModelKey
    classes: Mapping[str, ServerClass]
    cls: Mapping[str, str]
    """Server name → class name."""

    def problem(self, view: View, demand: Mapping[Role, float], *, exclusive: bool = False) -> Problem:
        members = tuple(
            Member(s.id, self.cls[s.spec.name], coming(s), fixed=s.switching is not None) for s in view.servers.values()
        )
        return Problem(self.classes, members, demand, exclusive=exclusive)


def coming(server: Server) -> RoleSet:
    return server.roles if server.switching is None else server.switching[1]


class Utilisation:
    """Share of samples at which the servers of a role computed, since the last ``take``."""

    def __init__(self) -> None:
        self._seen: Counter[Role] = Counter()
        self._busy: Counter[Role] = Counter()

    def sample(self, view: View) -> None:
        for server in view.servers.values():
            for role in server.serving:
                self._seen[role] += 1
            for role in {attempt.job.spec.role for attempt in server.attempts.values()} & server.serving:
                self._busy[role] += 1

    def take(self) -> dict[Role, float]:
        found = {role: self._busy[role] / self._seen[role] for role in REQUIRED if self._seen[role]}
        self._seen.clear()
        self._busy.clear()
        return found


class Reactive:
    """LightX2V's controller, one role per server: every 2 s a stage gets a server when it is over 80 % busy or more
    than two jobs wait, and gives one up below 20 % with an empty queue; 30 s of cooldown per stage.

    All servers are in use here, so that a server can only come from another stage: from one that would give one up if
    there is one, otherwise (more generous than the original, which would do nothing) from the least busy one with an
    empty queue.
    """

    period_seconds = SAMPLE_SECONDS
    every_seconds = 2.0
    out_busy, out_queue, in_busy = 0.8, 2, 0.2
    cooldown_seconds = 30.0

    def __init__(self, fleet: Fleet):
        self._fleet = fleet
        self._utilisation = Utilisation()
        self._looked_at = 0.0
        self._changed: dict[Role, float] = {}
        self._wanted: tuple[ServerId, RoleSet, str] | None = None

    def arrived(self, request: Request, view: View, now: float) -> None:
        pass

    def likely(self) -> Moves:
        return ()

    def switched(
        self, server: Server, added: frozenset[Role], load_seconds: float, now: float, *, from_host: bool
    ) -> None:
        pass

    def consider(self, view: View, now: float) -> tuple[Problem, str] | None:
        self._utilisation.sample(view)
        if now - self._looked_at < self.every_seconds:
            return None
        self._looked_at = now
        busy = self._utilisation.take()
        queues = {role: view.waiting(self._fleet.model, role) for role in REQUIRED}
        takers = [
            r
            for r in REQUIRED
            if self._is_free(r, now) and (busy.get(r, 1.0) > self.out_busy or queues[r] > self.out_queue)
        ]
        if not takers:
            return None
        taker = max(takers, key=lambda role: (queues[role], busy.get(role, 1.0)))
        giver = self._giver(view, taker, busy, queues, now)
        if giver is None:
            return None
        self._wanted = (giver, frozenset({taker}), f"{taker}: {busy.get(taker, 1.0):.0%} busy, {queues[taker]} waiting")
        return self._fleet.problem(view, dict.fromkeys(REQUIRED, 1.0), exclusive=True), self._wanted[2]

    def accept(self, plan: Plan, view: View, now: float) -> Moves:  # noqa: ARG002
        """The plan is not asked: the thresholds have decided."""
        wanted, self._wanted = self._wanted, None
        if wanted is None or wanted[0] not in view.servers:
            return ()
        for role in view.servers[wanted[0]].roles | wanted[1]:
            self._changed[role] = now
        return (wanted,)

    def _is_free(self, role: Role, now: float) -> bool:
        return now - self._changed.get(role, -self.cooldown_seconds) >= self.cooldown_seconds

    def _giver(
        self, view: View, taker: Role, busy: Mapping[Role, float], queues: Mapping[Role, int], now: float
    ) -> ServerId | None:
        """An idle server, if there is one, of the stage that can best do without."""
        stages = [
            role
            for role in REQUIRED
            if role is not taker
            and self._is_free(role, now)
            and not queues[role]
            and busy.get(role, 1.0) <= self.out_busy
            and len(view.serving(self._fleet.model, role)) > 1
        ]
        if not stages:
            return None
        stage = min(stages, key=lambda role: (busy[role] >= self.in_busy, busy[role]))
        holders = view.serving(self._fleet.model, stage).values()
        return min(holders, key=lambda server: (server.remaining(now), server.id)).id


class Demand(Protocol):
    """A notion of what is asked of each stage, in reference device-seconds per second."""

    def arrived(self, work: Mapping[Role, float], now: float) -> None: ...

    def now(self, view: View, model: ModelKey, busy: Mapping[Role, float], now: float) -> dict[Role, float]: ...


class Predicted:
    """An exponentially weighted mean of the predicted work that arrives; blind to queues."""

    memory_seconds = 30.0

    def __init__(self) -> None:
        self._rates: Counter[Role] = Counter()
        self._at = 0.0
        self._since: float | None = None

    def arrived(self, work: Mapping[Role, float], now: float) -> None:
        self._since = now if self._since is None else self._since
        fade = exp((self._at - now) / self.memory_seconds)
        self._at = now
        for role in REQUIRED:
            self._rates[role] = self._rates[role] * fade + work.get(role, 0.0) / self.memory_seconds  # type: ignore[assignment]

    def now(self, view: View, model: ModelKey, busy: Mapping[Role, float], now: float) -> dict[Role, float]:  # noqa: ARG002
        if self._since is None:
            return dict.fromkeys(REQUIRED, 0.0)
        covered = 1 - exp((self._since - now - 1.0) / self.memory_seconds)
        fade = exp((self._at - now) / self.memory_seconds)
        return {role: self._rates[role] * fade / covered for role in REQUIRED}


class Measured:
    """From how busy the servers of each stage are and how much waits at it; blind to what will follow."""

    smoothing = 0.1
    horizon_seconds = 30.0

    def __init__(self) -> None:
        self._busy: dict[Role, float] = {}

    def arrived(self, work: Mapping[Role, float], now: float) -> None:
        pass

    def now(self, view: View, model: ModelKey, busy: Mapping[Role, float], now: float) -> dict[Role, float]:
        demand = {}
        for role in REQUIRED:
            used = busy.get(role, 0.0) * len(view.serving(model, role))
            self._busy[role] = self._busy.get(role, used) * (1 - self.smoothing) + used * self.smoothing
            queue = view.queues.get((model, role))
            head = queue.best(now) if queue is not None else None
            waiting = len(queue) * view.reference_seconds(head) if queue is not None and head is not None else 0.0
            demand[role] = self._busy[role] + waiting / self.horizon_seconds
        return demand


@dataclass(slots=True)
class Gated:
    """The real gate and solver (hysteresis, dwell, role sets) around another notion of demand."""

    fleet: Fleet
    demand: Demand
    settings: PolicySettings = FIXED_GATE
    period_seconds: float = 1.0
    _gate: Gate = field(init=False)
    _utilisation: Utilisation = field(default_factory=Utilisation)
    _seen: Snapshot | None = None
    _changed: dict[ServerId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gate = Gate(self.settings)

    def arrived(self, request: Request, view: View, now: float) -> None:
        work: Counter[Role] = Counter()
        for job in request.jobs.values():
            work[job.spec.role] += view.reference_seconds(job)  # type: ignore[assignment] # a Counter of floats
        self.demand.arrived(work, now)

    def likely(self) -> Moves:
        return ()

    def switched(
        self,
        server: Server,
        added: frozenset[Role],  # noqa: ARG002
        load_seconds: float,  # noqa: ARG002
        now: float,
        *,
        from_host: bool,  # noqa: ARG002
    ) -> None:
        self._changed[server.id] = now

    def consider(self, view: View, now: float) -> tuple[Problem, str] | None:
        self._utilisation.sample(view)
        busy = self._utilisation.take()
        self._seen = self._snapshot(view, busy, self.demand.now(view, self.fleet.model, busy, now))
        problem = self._gate.consider(self._seen, now)
        return None if problem is None else (problem, "demand")

    def accept(self, plan: Plan, view: View, now: float) -> Moves:
        if self._seen is None:
            return ()
        present = self._snapshot(view, self._seen.busy, self._seen.demand)
        return [(move.server, move.roles, move.reason) for move in self._gate.accept(plan, present, now)]

    def _snapshot(self, view: View, busy: Mapping[Role, float], demand: Mapping[Role, float]) -> Snapshot:
        return Snapshot(
            self.fleet.classes, tuple(self._state(server) for server in view.servers.values()), demand, busy
        )

    def _state(self, server: Server) -> ServerState:
        to = server.switching[1] if server.switching is not None else None
        changed = self._changed.get(server.id, float("-inf"))
        return ServerState(server.id, self.fleet.cls[server.spec.name], server.roles, to, changed_at=changed)


class Oracle:
    """Knows when the mix changes and what it changes to; moves every server to the best plan ``lead`` seconds ahead."""

    period_seconds = 1.0

    def __init__(self, fleet: Fleet, phases: Sequence[tuple[float, Mapping[Role, float]]], lead: float):
        """``phases``: begin and true demand of each."""
        self._fleet = fleet
        self._phases = [(began - lead, demand) for began, demand in phases]
        self._present: Mapping[Role, float] = phases[0][1]
        self._wanted: Mapping[ServerId, RoleSet] = {}

    def arrived(self, request: Request, view: View, now: float) -> None:
        pass

    def likely(self) -> Moves:
        return ()

    def switched(
        self, server: Server, added: frozenset[Role], load_seconds: float, now: float, *, from_host: bool
    ) -> None:
        pass

    def consider(self, view: View, now: float) -> tuple[Problem, str] | None:
        demand = next(demand for began, demand in reversed(self._phases) if began <= now or began == self._phases[0][0])
        changed = demand is not self._present
        if changed:
            self._present, self._wanted = demand, {}
        if not changed and not self._pending(view):
            return None
        return self._fleet.problem(view, demand), "the phase changes"

    def accept(self, plan: Plan, view: View, now: float) -> Moves:  # noqa: ARG002
        self._wanted = self._wanted or plan.assignment
        return [(server, self._wanted[server], "the phase changes") for server in self._pending(view)]

    def _pending(self, view: View) -> list[ServerId]:
        """Those that could not move at once, each being the last holder of a role."""
        return [s.id for s in view.servers.values() if self._wanted.get(s.id, coming(s)) != coming(s)]


def renamed(problem: Problem, model: ModelKey) -> Fleet:
    """``problem`` names servers as the scenario does."""
    return Fleet(model, problem.classes, {str(server.id): server.cls for server in problem.servers})
