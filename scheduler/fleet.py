"""Servers come, go, and change their roles."""

from __future__ import annotations

from collections.abc import Callable

from scheduler import events as ev
from scheduler.ledger import Ledger
from scheduler.matcher import Matcher
from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.roles.solver import Plan
from scheduler.state import Server
from scheduler.timers import Alarm, Timers
from scheduler.transitions import COMMITTED, JobState
from scheduler.trials import Trials
from scheduler.view import View
from wire.types import Epoch, Role, ServerId

FleetEvent = (
    ev.ServerJoined
    | ev.ServerLost
    | ev.ServerLeaving
    | ev.LimitsRaised
    | ev.RolesReady
    | ev.RolesFailed
    | ev.ServerPinned
    | ev.RolesOrdered
    | ev.PlanReady
)

COMPUTED = frozenset({JobState.RUNNING, JobState.PAUSED})


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
        next_epoch: Callable[[], Epoch],
    ):
        self._view = view
        self._outbox = outbox
        self._policies = policies
        self._ledger = ledger
        self._matcher = matcher
        self._timers = timers
        self._trials = trials
        self._next_epoch = next_epoch
        self._orders: dict[ServerId, Epoch] = {}
        """The last one that each server has not answered: it may join anew meanwhile, and answer then."""
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
            case ev.ServerLeaving():
                server.is_leaving = True
                self._view.serve(server, frozenset())
            case ev.LimitsRaised(limits=limits):
                for role, limit in limits.items():
                    server.limits[role] = max(limit, server.limits.get(role, 0))
            case ev.RolesReady():
                added = self._switched(server, event.epoch, event.roles, now)
                if self._policies.roles is not None:
                    self._policies.roles.switched(server, added, event.load_seconds, now)
            case ev.RolesFailed():
                self._switched(server, event.epoch, event.roles, now)
            case ev.ServerPinned(pinned=pinned):
                server.pinned = pinned
            case ev.RolesOrdered(roles=roles):
                self._assign(server, roles, "ordered by the operator")
        self._matcher.touch(server)

    def _wake_idle(self) -> None:
        """What withheld a waiting job from an idle server may be over, such as its probation: time tells nobody."""
        waiting = {station for station, queue in self._view.queues.items() if len(queue)}
        for server in self._view.servers.values() if waiting else ():
            if not server.attempts and any((server.spec.model, role) in waiting for role in server.serving):
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
        self._view.servers[spec.id] = server
        self._view.targets.setdefault(spec.model, spec.target)
        self._view.serve(server, spec.roles)
        self._matcher.touch(server)
        self._trials.met(server, now)
        if self._policies.roles is not None:
            self._timers.set(Alarm.ROLES, "", now)

    def _lost(self, server: Server, why: str, now: float) -> None:
        self._view.serve(server, frozenset())
        del self._view.servers[server.id]
        self._matcher.forget(server)
        gone = list(server.holds.values())
        server.holds.clear()
        for job in gone:
            job.holder, job.outputs = None, ()
        for preview in list(server.shown.values()):
            if preview.state in (JobState.WAITING, JobState.FETCHING):
                self._ledger.drop(preview, why)
            else:
                preview.shown = None  # it has been read
        server.shown.clear()
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
            self._ledger.drop(job, why)
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
        for server_id, roles, reason in policy.accept(plan, self._view, now):
            server = self._view.servers.get(server_id)
            if server is not None and self._may_assign(server, roles):
                self._assign(server, roles, reason)

    def _may_assign(self, server: Server, roles: frozenset[Role]) -> bool:
        """The last holder of a role is never taken away, whatever a plan says."""
        free = not (server.pinned or server.is_leaving or server.switching)
        given_up = server.serving - roles
        others = (self._view.serving(server.spec.model, role).keys() - {server.id} for role in given_up)
        return free and roles != server.roles and all(others)

    def _assign(self, server: Server, roles: frozenset[Role], reason: str) -> None:
        epoch = self._next_epoch()
        server.switching = (epoch, roles)
        self._orders[server.id] = epoch
        self._view.serve(server, server.offered & roles)
        self._outbox.assign_roles(server.id, epoch, roles, reason)
        self._matcher.touch(server)

    def _switched(self, server: Server, epoch: Epoch, claimed: frozenset[Role], now: float) -> frozenset[Role]:
        """The roles that are new. Those that it cannot have are not believed."""
        roles = claimed.intersection(server.spec.capable)
        added, server.roles = roles - server.roles, roles
        if self._orders.get(server.id) == epoch:  # otherwise a later one replaced it
            del self._orders[server.id]
            server.switching = None
            server.roles_since = now
            if not server.is_leaving:
                self._view.serve(server, roles)
        if added:
            self._trials.met(server, now)
        return added
