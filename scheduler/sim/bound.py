"""How much a fleet could serve at best with true costs known: a phase's fluid bound (docs/simulator.md), its plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from scheduler.cost.model import CostModel
from scheduler.roles.bound import capacity, fluid_bound
from scheduler.roles.problem import Duty, Problem, RoleNeed, Server, ServerClass, Stage
from scheduler.roles.solver import plan
from scheduler.sim.setup import ServerSetup
from scheduler.sim.workload import Phase
from wire.types import STAGES, ModelKey, Role, ServerId

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
    reference: dict[str, dict[Stage, float]] = {}
    for server in servers:
        if server.model not in reference:
            reference[server.model] = _seconds(truth, server, phase, max_batch, _stages(servers, server))
    demand = {stage: seconds for model in reference.values() for stage, seconds in model.items()}
    classes: dict[str, ServerClass] = {}
    members = []
    for machine in machines(servers):
        name = " & ".join(map(_class_name, machine))
        needs = [_needs(s, demand, _seconds(truth, s, phase, max_batch, _stages(servers, s))) for s in machine]
        classes[name] = ServerClass(name, machine[0].memory, {k: v for some in needs for k, v in some.items()})
        held = frozenset(_stages(servers, server)[role] for server in machine for role in server.roles)
        members.append(Server(ServerId(machine[0].name), name, held, fixed=any(s.pinned for s in machine)))
    # A model that the phase does not ask for needs no holder, nor does an optional stage.
    asked = {
        stage: seconds
        for stage, seconds in demand.items()
        if seconds > 0 or not (isinstance(stage, Duty) or STAGES[stage].is_optional)
    }
    return Problem(classes, tuple(members), asked, exclusive=exclusive)


def machines(servers: Iterable[ServerSetup]) -> list[list[ServerSetup]]:
    """Servers by the device that they share."""
    found: dict[str, list[ServerSetup]] = {}
    for server in servers:
        found.setdefault(server.device or server.name, []).append(server)
    return list(found.values())


def _stages(servers: Sequence[ServerSetup], server: ServerSetup) -> dict[Role, Stage]:
    """What this server's roles are called in the problem."""
    alone = len({other.model for other in servers}) == 1
    return {role: role if alone else Duty(ModelKey(server.model), role) for role in server.profile.roles}


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
    held = {s.name: assignment[ServerId(machine[0].name)] for machine in machines(servers) for s in machine}
    return tuple(
        replace(
            server, roles=frozenset(r for r, stage in _stages(servers, server).items() if stage in held[server.name])
        )
        for server in servers
    )


def at_load(load: float, servers: Sequence[ServerSetup], phase: Phase) -> Phase:
    """The phase with a rate of ``load`` times the fluid bound without batching."""
    return replace(phase, rate=load * fluid_rate(servers, phase))


def _seconds(
    truth: CostModel, server: ServerSetup, phase: Phase, max_batch: int, stages: Mapping[Role, Stage]
) -> dict[Stage, float]:
    """Mean device-seconds per request, of whichever model, that each stage of this server's model takes there."""
    total = dict.fromkeys(stages.values(), 0.0)
    for count, work in phase.mean_works(server.model):
        gains = truth.batch_marginal(work, server.target) < BATCH_MARGINAL
        batch = max_batch if gains else 1
        each = truth.seconds(replace(work, batch=batch), server.target) / batch
        total[stages[work.role]] += count * each * server.slowness
    return total


def _needs(server: ServerSetup, reference: Mapping[Stage, float], own: Mapping[Stage, float]) -> dict[Stage, RoleNeed]:
    costs = server.capable()
    return {
        stage: RoleNeed(
            reference[stage] / seconds if seconds else 1.0,
            costs[role].weight_bytes,
            costs[role].activation_bytes,
            costs[role].load_seconds,
        )
        for role, (stage, seconds) in zip(server.profile.roles, own.items(), strict=True)
    }


def _class_name(server: ServerSetup) -> str:
    return f"{server.profile.device_class} {server.profile.precision} ×{server.slowness:g} {server.memory}"
