"""How much a fleet could serve at best with true costs known: a phase's fluid bound (docs/simulator.md), its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scheduler.cost.model import CostModel
from scheduler.roles.bound import capacity, fluid_bound
from scheduler.roles.problem import Problem, RoleNeed, Server, ServerClass
from scheduler.roles.solver import plan
from scheduler.sim.setup import ServerSetup
from scheduler.sim.workload import Phase
from wire.types import Role, ServerId

BATCH_MARGINAL = 0.7
"""Cost of one more member, in jobs, below which batching is worth it (docs/scheduling.md)."""


def problem(servers: Sequence[ServerSetup], phase: Phase, *, exclusive: bool = False, max_batch: int = 1) -> Problem:
    """The phase's mix as a role assignment problem; demand is per request, so a capacity is in requests per second.

    ``max_batch``: every job whose stage gains by it runs in batches of so many. Raises ``ValueError`` when there are no
    servers.
    """
    if not servers:
        raise ValueError("without servers there is nothing to assign roles to")
    truth = CostModel(server.profile for server in servers)
    demand = _seconds(truth, servers[0], phase, max_batch)
    classes = {_class_name(s): _server_class(s, demand, _seconds(truth, s, phase, max_batch)) for s in servers}
    members = tuple(Server(ServerId(s.name), _class_name(s), s.roles, fixed=s.pinned) for s in servers)
    return Problem(classes, members, demand, exclusive=exclusive)


def fluid_rate(servers: Sequence[ServerSetup], phase: Phase, *, max_batch: int = 1) -> float:
    """Requests per second of the phase's mix that no scheduler can exceed. Raises ``Infeasible``."""
    return fluid_bound(problem(servers, phase, max_batch=max_batch)).capacity


def static_rate(servers: Sequence[ServerSetup], phase: Phase, *, max_batch: int = 1) -> float:
    """The same with the roles that the servers have; 0 when a role has no holder."""
    return capacity(problem(servers, phase, max_batch=max_batch))


def with_best_roles(
    servers: Sequence[ServerSetup], phase: Phase, *, exclusive: bool = False
) -> tuple[ServerSetup, ...]:
    """The servers with the roles that serve the phase best, to begin with; pinned ones as they are.

    Raises ``Infeasible``.
    """
    blank = [server if server.pinned else replace(server, roles=frozenset()) for server in servers]
    assignment = plan(problem(blank, phase, exclusive=exclusive)).assignment
    return tuple(replace(server, roles=assignment[ServerId(server.name)]) for server in servers)


def at_load(load: float, servers: Sequence[ServerSetup], phase: Phase) -> Phase:
    """The phase with a rate of ``load`` times the fluid bound without batching."""
    return replace(phase, rate=load * fluid_rate(servers, phase))


def _seconds(truth: CostModel, server: ServerSetup, phase: Phase, max_batch: int) -> dict[Role, float]:
    """Mean device-seconds per request and role on this server."""
    total = dict.fromkeys(Role, 0.0)
    for count, work in phase.mean_works():
        gains = truth.batch_marginal(work, server.target) < BATCH_MARGINAL
        batch = max_batch if gains else 1
        each = truth.seconds(replace(work, batch=batch), server.target) / batch
        total[work.role] += count * each * server.slowness
    return total


def _server_class(server: ServerSetup, reference: dict[Role, float], own: dict[Role, float]) -> ServerClass:
    costs = server.capable()
    needs = {
        role: RoleNeed(reference[role] / own[role], cost.weight_bytes, cost.activation_bytes, cost.load_seconds)
        for role, cost in costs.items()
    }
    return ServerClass(_class_name(server), server.memory, needs)


def _class_name(server: ServerSetup) -> str:
    return f"{server.profile.device_class} {server.profile.precision} ×{server.slowness:g} {server.memory}"
