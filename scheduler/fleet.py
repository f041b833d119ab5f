"""Servers come, go, and change their roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from scheduler import events as ev
from scheduler.handover import HandOvers
from scheduler.ledger import Ledger
from scheduler.matcher import Matcher
from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.roles.problem import resident_bytes
from scheduler.roles.solver import Plan
from scheduler.state import Job, Server, expected
from scheduler.timers import Alarm, Timers
from scheduler.transitions import COMMITTED, JobState
from scheduler.trials import Trials
from scheduler.view import View
from wire.types import STAGES, Epoch, ModelKey, Role, ServerId

FleetEvent = (
    ev.ServerJoined
    | ev.ServerLost
    | ev.ServerLeaving
    | ev.LossAnnounced
    | ev.LimitsRaised
    | ev.RolesReady
    | ev.RolesWarm
    | ev.RolesFailed
    | ev.ServerPinned
    | ev.RolesOrdered
    | ev.PlanReady
)

COMPUTED = frozenset({JobState.RUNNING, JobState.PAUSED})


@dataclass(frozen=True, slots=True)
class _Order:
    epoch: Epoch
    roles: frozenset[Role]
    reason: str
    has_made_room: bool = False
    """What it gives up was ordered before the rest."""


class Fleet:
    def __init__(
        self,
        view: View,
        outbox: Outbox,
        policies: Policies,
        ledger: Ledger,
        matcher: Matcher,
        timers: Timers,
        trials: Trials,
        handovers: HandOvers,
        next_epoch: Callable[[], Epoch],
    ):
        self._view = view
        self._outbox = outbox
        self._policies = policies
        self._ledger = ledger
        self._matcher = matcher
        self._timers = timers
        self._trials = trials
        self._handovers = handovers
        self._next_epoch = next_epoch
        self._orders: dict[ServerId, Epoch] = {}
        """The last one that each server has not answered: it may join anew meanwhile, and answer then."""
        self._held_back: dict[ServerId, _Order] = {}
        """Changes that wait for room on the device that the server shares."""
        self._is_solving = False

    def handle(self, event: FleetEvent, now: float) -> None:
        match event:
            case ev.ServerJoined():
                self._joined(event, now)
            case ev.PlanReady(plan=plan):
                self._planned(plan, now)
            case _:
                server = self._view.servers.get(event.server)
                if server is not None:
                    self._about(server, event, now)

    def alarm(self, alarm: Alarm, subject: str, now: float) -> None:
        if alarm is Alarm.LEAD:
            server = self._view.servers.get(ServerId(subject))
            if server is not None:
                self._matcher.touch(server)
        else:
            self._reconsider_roles(now)
            self._wake_idle()

    def _about(self, server: Server, event: FleetEvent, now: float) -> None:
        match event:
            case ev.ServerLost(why=why):
                self._lost(server, why, now)
                return
            case ev.ServerLeaving(within=within):
                server.is_leaving = True
                server.leaves_at = now + within if within else None
                self._view.serve(server, frozenset())
                self._ledger.relieve(server, now)
                self._handovers.consider(server, now)
            case ev.LossAnnounced():
                pass  # whoever replaces servers tells it when to stop
            case ev.LimitsRaised(limits=limits):
                for role, limit in limits.items():
                    server.limits[role] = max(limit, server.limits.get(role, 0))
            case ev.RolesReady() | ev.RolesFailed() | ev.RolesWarm():
                self._about_roles(server, event, now)
            case ev.ServerPinned(pinned=pinned):
                server.pinned = pinned
            case ev.RolesOrdered(roles=roles):
                self._assign(server, roles, "ordered by the operator", now)
        self._send_held_back(server, now)
        self._matcher.touch(server)

    def _about_roles(self, server: Server, event: ev.RolesReady | ev.RolesFailed | ev.RolesWarm, now: float) -> None:
        match event:
            case ev.RolesReady(load_seconds=seconds, from_host=from_host):
                added = self._switched(server, event.epoch, event.roles, now)
                if self._policies.roles is not None:
                    self._policies.roles.switched(server, added, seconds, now, from_host=from_host)
            case ev.RolesFailed():
                self._switched(server, event.epoch, event.roles, now)
            case ev.RolesWarm(roles=roles):
                server.warm = roles.intersection(server.spec.capable)

    def _wake_idle(self) -> None:
        """What withheld a waiting job from an idle server may be over, such as its probation: time tells nobody."""
        waiting = {station for station, queue in self._view.queues.items() if len(queue)}
        for server in self._view.servers.values() if waiting else ():
            if server.is_idle and any((server.spec.model, role) in waiting for role in server.serving):
                self._matcher.touch(server)

    # --- coming and going ---------------------------------------------------------------------------------------------

    def _joined(self, event: ev.ServerJoined, now: float) -> None:
        spec = event.server
        former = self._view.servers.get(spec.id)
        if former is not None:
            self._lost(former, "it joined again", now)
        if event.running:
            self._outbox.cancel(spec.id, event.running, "of a former epoch")
        if event.holds:
            self._outbox.release(spec.id, event.holds, "of a former epoch")
        server = Server(
            spec, now, frozenset(), dict(event.limits), roles=spec.roles, roles_since=now, pinned=spec.pinned
        )
        server.warm = spec.warm
        self._view.settle(server)
        self._view.targets.setdefault(spec.model, spec.target)
        self._view.names.setdefault(spec.model, spec.model_name or self._view.name_of(spec.model))
        self._view.serve(server, spec.roles)
        self._matcher.touch(server)
        self._trials.met(server, now)
        if self._policies.roles is not None:
            self._timers.set(Alarm.ROLES, "", now)

    def _lost(self, server: Server, why: str, now: float) -> None:
        self._view.serve(server, frozenset())
        sharers = [other for other in server.sharers if other is not server]
        self._view.remove(server)
        self._held_back.pop(server.id, None)
        self._matcher.forget(server, sharers)
        for other in sharers[:1]:
            self._send_held_back(other, now)
        gone = list(server.holds.values())
        server.holds.clear()
        for job in gone:
            job.holder, job.outputs = None, ()
        for preview in list(server.shown.values()):
            if preview.state in (JobState.WAITING, JobState.FETCHING):
                self._ledger.drop(preview, why, now)
            else:
                preview.shown = None  # it has been read
        server.shown.clear()
        unfinished = list(server.handed_over.values())
        server.handed_over.clear()
        self._ledger.lost_handed_over(unfinished, now)
        for attempt in list(server.attempts.values()):
            self._lost_attempt(server, attempt.epoch, why, now)
        self._ledger.lost(gone, now)
        self._trials.forget(server.id, now)

    def _lost_attempt(self, server: Server, epoch: Epoch, why: str, now: float) -> None:
        attempt = server.attempts.pop(epoch)
        job = attempt.job
        if job.attempt is not attempt:
            return
        if job.state not in COMMITTED:
            job.become(JobState.CANCELLED)
            job.attempt = None
            return
        if job.spec.optional:
            self._ledger.drop(job, why, now)
            return
        job.losses += job.state in COMPUTED
        if job.losses >= self._policies.max_losses:
            message = f"{job.losses} stage servers died while they worked on this request, the last one: {why}"
            self._ledger.give_up(job, "poison", message)
        else:
            self._ledger.requeue(job, now)

    # --- roles --------------------------------------------------------------------------------------------------------

    def _reconsider_roles(self, now: float) -> None:
        policy = self._policies.roles
        if policy is None or not self._view.servers:
            return
        self._timers.set(Alarm.ROLES, "", now + policy.period_seconds)
        if self._is_solving:
            return
        found = policy.consider(self._view, now)
        if found is not None:
            problem, reason = found
            self._is_solving = True
            self._outbox.solve_plan(problem, reason)

    def _planned(self, plan: Plan | None, now: float) -> None:
        self._is_solving = False
        policy = self._policies.roles
        if plan is None or policy is None:
            return
        kept: set[str] = set()
        """Devices of which one server keeps what it was to give up: what comes there would find no room."""
        assigned: list[Server] = []
        for server_id, roles, reason in policy.accept(plan, self._view, now):
            server = self._view.servers.get(server_id)
            if server is None:
                continue
            device = server.spec.device or server.id
            if device not in kept and self._may_assign(server, roles):
                self._hold_back(server, roles, reason)
                assigned.append(server)
            else:
                kept.add(device)
        for server in assigned:  # once all are known: which of a device goes first depends on the others
            self._send_held_back(server, now)
        for server_id, roles, reason in policy.likely():
            if server_id in self._view.servers:
                self._outbox.preload(server_id, roles, reason)

    def _may_assign(self, server: Server, roles: frozenset[Role]) -> bool:
        """The last holder of a role, or of a role with some adapter, is never taken away, whatever a plan says: except
        that of an optional role that no request needs and, where several models share a device, that of a model of
        which no request is under way."""
        free = not (server.pinned or server.is_leaving or server.switching)
        return (
            free and roles != server.roles and not any(self._is_last(server, role) for role in server.serving - roles)
        )

    def _is_last(self, server: Server, role: Role) -> bool:
        model = server.spec.model
        if len(server.sharers) > 1 and all(request.spec.model != model for request in self._view.live.values()):
            return False
        if STAGES[role].is_optional and not any(_needs(job, model, role) for job in self._view.jobs.values()):
            return False
        serving = self._view.serving(server.spec.model, role)
        others = [each.spec.adapters for each in serving.values() if each is not server and role in expected(each)]
        needed = [adapter for adapter, roles in server.spec.adapters.items() if role in roles]
        return not others or any(not any(adapter in other for other in others) for adapter in needed)

    def _assign(self, server: Server, roles: frozenset[Role], reason: str, now: float) -> None:
        """Where its device will never have room, the server itself is to say so."""
        self._hold_back(server, roles, reason)
        if not _fit(server, {other.id: expected(other) for other in server.sharers}):
            self._send(server, self._held_back.pop(server.id), now)
        else:
            self._send_held_back(server, now)

    def _hold_back(self, server: Server, roles: frozenset[Role], reason: str) -> None:
        epoch = self._next_epoch()
        server.switching = (epoch, roles)
        self._held_back[server.id] = _Order(epoch, roles, reason)

    def _send_held_back(self, changed: Server, now: float) -> None:
        """All on its device for which there is room. Where there is none, and nothing is under way that might make it,
        those that give something up do that first; what will never find room is forgotten.
        """
        sharers = tuple(changed.sharers) or (changed,)
        for server in sharers:
            if server.id in self._held_back and self._has_room(server):
                self._send(server, self._held_back.pop(server.id), now)
        waiting = [server for server in sharers if server.id in self._held_back]
        if not waiting or any(server.owes_answer for server in sharers):
            return
        for server in waiting:
            order = self._held_back[server.id]
            can_make_room = not (order.has_made_room or server.roles <= order.roles)
            if can_make_room and _fit(server, {other.id: expected(other) for other in sharers}):
                self._held_back[server.id] = replace(order, has_made_room=True)
                self._send(server, _Order(self._next_epoch(), server.roles & order.roles, "to make room first"), now)
        if not any(server.owes_answer for server in waiting):
            for server in waiting:
                del self._held_back[server.id]
                server.switching = None

    def _send(self, server: Server, order: _Order, now: float) -> None:
        epoch, roles = order.epoch, order.roles
        self._orders[server.id] = epoch
        server.owes_answer = True
        self._view.serve(server, server.offered & roles)
        self._outbox.assign_roles(server.id, epoch, roles, order.reason)
        if Role.DIT not in roles:
            self._handovers.consider(server, now)
        self._matcher.touch(server)

    def _has_room(self, server: Server) -> bool:
        """Whether its device can hold what the server is to hold beside all that the others hold, or get just now.

        What it gives up is not counted: it drops that first where it has to.
        """
        held = {
            other.id: other.roles | (frozenset() if other.id in self._held_back else expected(other))
            for other in server.sharers
        }
        return _fit(server, held | {server.id: expected(server)})

    def _switched(self, server: Server, epoch: Epoch, claimed: frozenset[Role], now: float) -> frozenset[Role]:
        """The roles that are new. Those that it cannot have are not believed."""
        roles = claimed.intersection(server.spec.capable)
        added, server.roles = roles - server.roles, roles
        if self._orders.get(server.id) == epoch:  # otherwise a later one replaced it
            del self._orders[server.id]
            server.owes_answer = False
            if server.id not in self._held_back:  # otherwise a later one waits for room
                server.switching = None
            server.roles_since = now
            if not server.is_leaving:
                self._view.serve(server, roles)
        if added:
            self._trials.met(server, now)
        return added


def _needs(job: Job, model: ModelKey, role: Role) -> bool:
    return job.spec.role is role and job.holder is None and job.request.spec.model == model


def _fit(server: Server, held: Mapping[ServerId, frozenset[Role]]) -> bool:
    """Whether its device has room for these roles of all that share it."""
    costs = [other.spec.capable[role] for other in server.sharers for role in held[other.id]]
    weights = resident_bytes((cost.weight_bytes, cost.common_bytes) for cost in costs)
    needed = weights + max((cost.activation_bytes for cost in costs), default=0)
    memory = max((other.spec.memory_bytes for other in server.sharers), default=0)
    return not memory or needed <= memory
