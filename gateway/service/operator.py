"""What operators see of the scheduler, and what they may order; orders are judged here, by the state of the moment.

It reads the scheduler's view and changes nothing: orders become events.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from gateway.service.decisions import Decisions, job_told
from gateway.service.interfaces import NothingKnown, OrderRefused, UnknownServer
from scheduler import events as ev
from scheduler.elastic.roles import ElasticRoles
from scheduler.elastic.suspects import Suspects
from scheduler.roles.gate import Snapshot, utilisation
from scheduler.roles.problem import in_order
from scheduler.state import Server
from scheduler.view import View
from wire.to_gateway import Heartbeat
from wire.to_stage import Shutdown, ToStage
from wire.types import RequestId, Role, ServerId

Judge = Callable[[], ev.Event | None]


@dataclass(frozen=True, slots=True)
class Levers:
    """What the operator's desk acts through."""

    order: Callable[[Judge], Awaitable[None]]
    """See ``Dispatcher.order``."""
    send: Callable[[ServerId, ToStage], None]
    vitals: Callable[[], Mapping[ServerId, Heartbeat]]


class Operator:
    """Implements ``gateway.service.interfaces.OperatorService``."""

    def __init__(
        self,
        view: View,
        roles: ElasticRoles | None,
        suspects: Suspects,
        decisions: Decisions,
        levers: Levers,
        scaling: Callable[[], Mapping[str, object]] | None = None,
    ) -> None:
        """``roles`` and ``suspects`` are the scheduler's own; without ``roles`` they move by orders alone. ``scaling``
        tells of pools, where there are any."""
        self._scaling = scaling
        self._view = view
        self._roles = roles
        self._suspects = suspects
        self._decisions = decisions
        self._levers = levers

    # --- what there is to see -----------------------------------------------------------------------------------------

    def servers(self) -> list[Mapping[str, object]]:
        vitals = self._levers.vitals()
        return [self._told(server, vitals.get(server.id)) for server in self._view.servers.values()]

    def why(self, request: str, server: str) -> Mapping[str, object]:
        if request:
            return self._about_request(RequestId(request))
        if server:
            return {"server": server, "decisions": self._about_server(server)}
        return {"decisions": self._decisions.latest()}

    def plan(self) -> Mapping[str, object]:
        seen = self._roles.explain() if self._roles is not None else {}
        models = {key: _snapshot_told(snapshot) | {"verdict": verdict} for key, (snapshot, verdict) in seen.items()}
        idle = "no work has been planned for yet" if self._roles is not None else "elastic roles are switched off"
        return {"models": models, "last_plan": self._last_plan()} if models else {"verdict": idle}

    def scaling(self) -> Mapping[str, object]:
        return self._scaling() if self._scaling is not None else {"pools": {}}

    # --- orders -------------------------------------------------------------------------------------------------------

    async def pin(self, server: str, *, pinned: bool) -> Mapping[str, object]:
        return await self._order(server, lambda found: _pin(found, pinned))

    async def assign(self, server: str, roles: Iterable[Role]) -> Mapping[str, object]:
        wanted = frozenset(roles)
        return await self._order(server, lambda found: self._assign(found, wanted))

    async def drain(self, server: str) -> Mapping[str, object]:
        return await self._order(server, self._drain)

    async def announce_loss(self, server: str, within: float) -> Mapping[str, object]:
        for mate in [each.spec.name for each in self._find(server).sharers] or [server]:
            told = await self._order(mate, lambda found: ev.LossAnnounced(found.id, within))
        return told

    async def _order(self, name: str, judge: Callable[[Server], ev.Event | None]) -> Mapping[str, object]:
        found: list[Server] = []

        def judged() -> ev.Event | None:
            found.append(self._find(name))
            return judge(found[0])

        await self._levers.order(judged)
        return self._told(found[0], None)

    def _find(self, name: str) -> Server:
        named = [server for server in self._view.servers.values() if server.spec.name == name]
        if named:
            return named[-1]
        known = ", ".join(sorted(server.spec.name for server in self._view.servers.values())) or "none"
        raise UnknownServer(f"No stage server is named '{name}'; there are: {known}.")

    def _assign(self, server: Server, roles: frozenset[Role]) -> ev.Event | None:
        name = server.spec.name
        if roles == (server.switching[1] if server.switching is not None else server.roles):
            return None
        if server.is_leaving:
            raise OrderRefused(f"'{name}' is leaving and takes no new roles.")
        if server.spec.pinned:
            raise OrderRefused(f"'{name}' was started with --pin: restart it without, or with other roles.")
        if not roles and not server.sharers:
            raise OrderRefused(f"'{name}' serves one model and must hold a role of it: drain it instead.")
        if strange := roles - server.spec.capable.keys():
            raise OrderRefused(f"'{name}' cannot take {_listed(strange)}; it can take {_listed(server.spec.capable)}.")
        self._check_not_last(server, server.serving - roles)
        return ev.RolesOrdered(server.id, roles)

    def _drain(self, server: Server) -> ev.Event | None:
        if server.is_leaving:
            return None
        process = server.sharers or [server]
        for each in process:
            self._check_not_last(each, each.serving)
        for each in process:
            self._levers.send(each.id, Shutdown())
        return ev.ServerLeaving(server.id)

    def _check_not_last(self, server: Server, given_up: Iterable[Role]) -> None:
        model = server.spec.model
        last = [role for role in given_up if not self._view.serving(model, role).keys() - {server.id}]
        if last:
            raise OrderRefused(
                f"'{server.spec.name}' is the last server that serves {_listed(last)} of {model}: "
                "give that role to another server first."
            )

    # --- in words -----------------------------------------------------------------------------------------------------

    def _told(self, server: Server, vitals: Heartbeat | None) -> Mapping[str, object]:
        spec = server.spec
        room = {} if vitals is None else {"store_bytes": vitals.store_bytes, "store_capacity": vitals.store_capacity}
        return room | {
            "name": spec.name,
            "id": server.id,
            "model": spec.model,
            "pool": spec.pool,
            "device_class": spec.device_class,
            "shares_device_with": [other.spec.name for other in server.sharers if other is not server],
            "capable": _ordered(spec.capable),
            "roles": _ordered(server.roles),
            "serving": _ordered(server.serving),
            "in_host_memory": _ordered(server.warm - server.roles),
            "switching_to": _ordered(server.switching[1]) if server.switching is not None else None,
            "pinned": server.pinned,
            "leaving": server.is_leaving,
            "set_aside": _ordered(server.aside),
            "why_set_aside": server.why_aside,
            "suspect": self._suspects.is_suspect(server.id),
            "speed_factor": round(self._view.cost.speed(spec.name), 3),
            "jobs": [job_told(attempt.job) for attempt in server.attempts.values()],
        }

    def _about_request(self, request: RequestId) -> Mapping[str, object]:
        decisions = self._decisions.about_request(request)
        live = self._view.live.get(request)
        if live is None and not decisions:
            raise NothingKnown(f"Nothing is known of the request '{request}': it never was, or was long ago.")
        jobs = [] if live is None else [job_told(job) for job in live.jobs.values()]
        return {"request": request, "under_way": live is not None, "jobs": jobs, "decisions": decisions}

    def _about_server(self, name: str) -> list[dict[str, object]]:
        decisions = self._decisions.about_server(name)
        if not decisions:
            self._find(name)
        return decisions

    def _last_plan(self) -> Mapping[str, object] | None:
        if self._decisions.plan is None:
            return None
        at, event, moves = self._decisions.plan
        made = [{"server": move.server, "roles": _ordered(move.roles), "reason": move.reason} for move in moves]
        told = {"at": round(at, 3), "seconds_ago": round(time.time() - at, 1), "moves": made}
        if event.plan is None:
            return told | {"outcome": "no assignment gives every role a holder"}
        plan = event.plan
        wanted = {server: [str(stage) for stage in in_order(roles)] for server, roles in plan.changes.items()}
        capacities = {"present": plan.present, "planned": plan.capacity, "bound": plan.bound}
        return told | {"capacity": {name: round(value, 3) for name, value in capacities.items()}, "wanted": wanted}


def _pin(server: Server, pinned: bool) -> ev.Event | None:
    if server.spec.pinned and not pinned:
        raise OrderRefused(f"'{server.spec.name}' was started with --pin: restart it without.")
    return None if server.pinned == pinned else ev.ServerPinned(server.id, pinned)


def _snapshot_told(snapshot: Snapshot) -> dict[str, object]:
    """Demand in device-seconds per second, and by what share each may be off (one standard error); utilisation of the
    busiest roles, None where a role has no holder.
    """
    load = utilisation(snapshot)
    return {
        "demand": {str(stage): round(seconds, 4) for stage, seconds in snapshot.demand.items()},
        "doubt": {str(stage): round(share, 3) for stage, share in snapshot.doubt.items() if stage in snapshot.demand},
        "busy": {str(stage): round(fraction, 3) for stage, fraction in snapshot.busy.items()},
        "utilisation": round(load, 3) if load < float("inf") else None,
        "unheld": [str(stage) for stage in in_order(snapshot.unheld())],
    }


def _ordered(roles: Iterable[Role]) -> list[str]:
    held = set(roles)
    return [role.value for role in Role if role in held]


def _listed(roles: Iterable[Role]) -> str:
    return " and ".join(_ordered(roles))
