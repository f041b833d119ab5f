"""The autoscaler: how many servers each pool shall have, from the events that the scheduler sees and what it knows.

``note`` takes every event after the scheduler has; ``decide`` is asked every ``interval_seconds``. Neither changes
anything of the scheduler's. Starting and stopping servers is a launcher's affair: it is told what is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler import events as ev
from scheduler.coming import Expected
from scheduler.scaling import fleet
from scheduler.scaling.capacity import Capacities
from scheduler.scaling.choice import Choice, Situation
from scheduler.scaling.drains import first_to_go, least_busy, must_stop
from scheduler.scaling.forecast import Forecast
from scheduler.scaling.pools import Pool, ScalingSettings, distinct
from scheduler.scaling.records import ModelState, PoolOrder, PoolState
from scheduler.spec import RequestSpec
from scheduler.state import Server
from scheduler.view import View
from wire.types import ModelKey, ServerId

SUSPENSE = 2.0
"""Times the usual start after which nobody counts on a server that was asked for."""
AT_LEAST = 1.0
"""Seconds that one which is late is still expected to take."""


_NOTED = frozenset((ev.RequestArrived, ev.ServerJoined, ev.ServerLost, ev.ServerLeaving, ev.LossAnnounced))


class Autoscaler:
    def __init__(self, pools: Iterable[Pool], view: View, settings: ScalingSettings | None = None):
        """``view``: the scheduler's. Raises ``ValueError`` where two pools have one name."""
        self.settings = settings or ScalingSettings()
        self._view = view
        self._pools = {pool.name: PoolState(pool) for pool in distinct(pools)}
        self._models: dict[str, ModelState] = {}
        self._doomed: dict[ServerId, float] = {}
        """When their machines are taken away."""
        self._capacities = Capacities()
        self._wanted: dict[str, int] = {}
        self._began: float | None = None
        self.latest: tuple[PoolOrder, ...] = ()
        """What was decided last."""

    @property
    def interval_seconds(self) -> float:
        return self.settings.interval_seconds

    # --- events -------------------------------------------------------------------------------------------------------

    def note(self, event: ev.Event, now: float) -> None:
        if type(event) not in _NOTED:
            return  # as with most of them
        match event:
            case ev.RequestArrived(request=spec):
                self._arrived(spec, now)
            case ev.ServerJoined(server=spec):
                self._joined(self._view.servers.get(spec.id), now)
            case ev.ServerLost(server=server) | ev.ServerLeaving(server=server):
                self._going(server, now)
            case ev.LossAnnounced(server=server, within=within) if server in self._view.servers:
                self._doomed[server] = now + within
                self._replace_missing(now)
            case _:
                pass

    def _arrived(self, spec: RequestSpec, now: float) -> None:
        target, name = self._view.targets.get(spec.model), self._view.name_of(spec.model)
        if target is None or all(state.pool.model != name for state in self._pools.values()):
            return
        jobs = [(job.work, self._view.cost.seconds(job.work, target)) for job in spec.jobs]
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = ModelState(spec.model, Forecast(now), now, {})
        model.arrived(spec.model, jobs, spec.deadline - now, now)

    def _joined(self, server: Server | None, now: float) -> None:
        if server is None:
            return  # it has gone again: events of one moment are told together
        for other in self._pools.values():
            other.members.pop(server.id, None)  # it joined anew
        state = self._pools.get(server.spec.pool)
        if state is None or state.pool.model != self._view.name_of(server.spec.model):
            return
        state.members[server.id] = server
        if state.ordered:
            took = state.took[server.id] = now - state.ordered.pop(0)
            state.starts.measured(took)

    def _going(self, server: ServerId, now: float) -> None:
        if server not in self._view.servers:
            self._doomed.pop(server, None)
            for state in self._pools.values():
                state.members.pop(server, None)
                state.took.pop(server, None)
        self._replace_missing(now)

    def _replace_missing(self, now: float) -> None:
        """What is wanted stays so: whoever starts servers replaces what has gone."""
        for name, wanted in self._wanted.items():
            state = self._pools[name]
            missing = wanted - len(state.staying(self._doomed)) - len(state.ordered)
            state.ordered += [now] * max(0, missing)

    # --- decisions ----------------------------------------------------------------------------------------------------

    def decide(self, now: float) -> tuple[PoolOrder, ...]:
        """What each pool shall have, in the order in which they were given."""
        self._began = now if self._began is None else self._began
        for model in self._models.values():
            model.forecast.advance(now)
        for state in self._pools.values():
            state.surplus = [server for server in state.surplus if server in state.members]
        for name in dict.fromkeys(state.pool.model for state in self._pools.values()):
            self._decide_model(name, [state for state in self._pools.values() if state.pool.model == name], now)
        self.latest = tuple(self._order(state, now) for state in self._pools.values())
        return self.latest

    def _decide_model(self, name: str, states: Sequence[PoolState], now: float) -> None:
        choice = Choice(self._situation(name, states, now), self.settings, now)
        extra = choice.made()
        for state in states:
            change = extra.get(state.pool.name, 0)
            state.why = choice.why(state)
            if change > 0:
                kept = self._called_back(state, change)
                state.ordered += [now] * (change - kept)
            for _ in range(-change):
                self._give_up(state, now, idle=choice.is_idle)
            self._wanted[state.pool.name] = len(state.staying(self._doomed)) + len(state.ordered)

    def _called_back(self, state: PoolState, count: int) -> int:
        """Servers that were to go, have not begun to, and stay after all."""
        able = [name for name in state.surplus if not state.members[name].is_leaving and name not in self._doomed]
        kept = able[-count:]
        state.surplus = [name for name in state.surplus if name not in kept]
        return len(kept)

    def _give_up(self, state: PoolState, now: float, *, idle: bool) -> None:
        """One that is on its way, the latest, or who has least to finish."""
        if state.ordered:
            state.ordered.pop()
            return
        staying = state.staying(self._doomed)
        going = {*self._doomed, *(name for each in self._pools.values() for name in each.surplus)}
        chosen = least_busy(staying, now) if idle else first_to_go(staying, going, self._view, now)
        if chosen is None:
            state.why += "; but each of its servers is the last that holds some role"
        else:
            state.surplus.append(chosen.id)

    def _order(self, state: PoolState, now: float) -> PoolOrder:
        ready = len(state.staying(self._doomed))
        lost = tuple(server.id for server in state.members.values() if self._must_stop(server, now))
        return PoolOrder(
            pool=state.pool,
            wanted=ready + len(state.ordered),
            ready=ready,
            drain=(*state.surplus, *(server for server in lost if server not in state.surplus)),
            lost=lost,
            cold_start_seconds=state.starts.usual(),
            cold_starts=dict(state.took),
            why=state.why,
        )

    def _must_stop(self, server: Server, now: float) -> bool:
        lost_at = self._doomed.get(server.id)
        model = self._models.get(self._view.name_of(server.spec.model))
        longest = model.longest * self._view.cost.speed(server.spec.name) if model is not None else 0.0
        return lost_at is not None and must_stop(server, lost_at, longest, self.settings.interval_seconds, now)

    # --- what is known ------------------------------------------------------------------------------------------------

    def _situation(self, name: str, states: Sequence[PoolState], now: float) -> Situation:
        model = self._models.get(name)
        key = next((key for key in reversed(self._view.targets) if self._view.name_of(key) == name), None)
        counted = fleet.Fleet(model.work if model is not None else {}, self._capacities)
        if key is not None:
            self._count(counted, model.key if model is not None else key, states, now)
        return Situation(
            states=states,
            doomed=self._doomed,
            model=model,
            fleet=counted,
            asked_at=model.asked_at if model is not None else self._began or now,
            is_introduced=key is not None,
            backlog=self._backlog(name, now),
            live=sum(self._view.name_of(request.spec.model) == name for request in self._view.live.values()),
        )

    def _count(self, counted: fleet.Fleet, key: ModelKey, states: Sequence[PoolState], now: float) -> None:
        model = self._models.get(self._view.name_of(key))
        works = model.works if model is not None else {}
        members: dict[ServerId, str] = {}
        for state in states:
            pool, name = state.pool, state.pool.name
            for server in state.members.values():
                members[server.id] = name
                state.cls = fleet.class_of(name, server, pool.roles, works, self._view)
            counted.classes[name] = state.cls or fleet.assumed_class(pool, key, works, self._view)
            for at in state.ordered:
                counted.changes.append((max(AT_LEAST, at + state.starts.usual() - now), name, 1))
        surplus = {server for state in states for server in state.surplus}
        for server in self._view.servers.values():
            if (
                self._view.name_of(server.spec.model) != self._view.name_of(key)
                or server.is_leaving
                or server.id in surplus
            ):
                continue
            cls = members.get(server.id) or fleet.class_name(server)
            if cls not in counted.classes:
                counted.classes[cls] = fleet.class_of(cls, server, server.spec.capable, works, self._view)
            counted.present[cls] += 1
            if server.id in self._doomed:
                counted.changes.append((max(0.0, self._doomed[server.id] - now), cls, -1))

    def _backlog(self, name: str, now: float) -> float:
        """Reference seconds that admitted requests still need."""
        total = 0.0
        for job in self._view.jobs.values():
            if (
                job.taken
                or job.holder is not None
                or job.spec.optional
                or self._view.name_of(job.request.spec.model) != name
            ):
                continue
            total += self._view.reference_seconds(job) if job.attempt is None else job.attempt.left(now)
        return total

    def awaits(self) -> bool:
        """Whether some model that is known has a pool which may be empty: requests for it are worth accepting."""
        empty = [state.pool for state in self._pools.values() if not state.pool.min]
        return any(pool.model in self._view.names.values() for pool in empty)

    def expected(self, model: ModelKey, now: float) -> list[Expected]:
        """Servers of a model that are on their way; where it has none at all, the one that would be asked for."""
        if model not in self._view.targets:
            return []
        pools = [state for state in self._pools.values() if state.pool.model == self._view.name_of(model)]
        coming = [
            self._expected(state, model, max(AT_LEAST, at + usual - now))
            for state in pools
            for usual in (state.starts.usual(),)
            for at in state.ordered
            if now - at < SUSPENSE * usual
        ]
        if coming or not pools or any(server.spec.model == model for server in self._view.servers.values()):
            return coming
        first = min(pools, key=lambda state: state.starts.usual())
        return [self._expected(first, model, first.starts.usual() + self.settings.interval_seconds)]

    def _expected(self, state: PoolState, model: ModelKey, seconds: float) -> Expected:
        return Expected(seconds, fleet.target_of(state.pool, model, self._view), state.pool.roles)
