"""Who takes part: ours, and every baseline, by name.

Role policies differ in roles alone: order, placement, batching and preemption are ours for all of them. Role sets under
the memory limits are allowed to all but those that are defined by one role per server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from benchmarks.scheduling.baselines import roles as baseline
from benchmarks.scheduling.baselines.replicas import Central, Replicas, RoundRobin, Route, ShortestQueue
from benchmarks.scheduling.twin import knowing, mean_phase, run
from scheduler.cost.profile import Profile
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings, Ordering
from scheduler.policy import Policies, RolePolicy
from scheduler.sim.bound import problem, with_best_roles
from scheduler.sim.metrics import Result
from scheduler.sim.setup import ALL_ROLES, Scenario, ServerSetup
from scheduler.sim.suite import bundled_profile
from scheduler.spec import RequestSpec

WITHOUT_LIMIT = 10**6
"""Requests under way: admission is not what is compared."""
AGING = ElasticSettings().aging

LEADS = {"on time": 0.0, "one load ahead": 1.0}
"""Of the oracle: how long before a phase it orders its roles, in times of loading every role."""
ORDERS = {"shortest first": Ordering.SHORTEST, "first come": Ordering.FIRST_COME}
ORACLES = tuple(f"oracle, {order}, {lead}" for order in ORDERS for lead in LEADS)
"""The published grid: order × lead of the role plan."""


@dataclass(frozen=True, slots=True)
class Contender:
    scenario: Callable[[Scenario], Scenario] = lambda scenario: scenario
    """The servers that it starts with."""
    settings: ElasticSettings = field(default_factory=ElasticSettings)
    roles: Callable[[Scenario], RolePolicy | None] | None = None
    """None: ours."""
    route: Callable[[Scenario], Route] | None = None
    """Of monolithic replicas."""

    def run(self, scenario: Scenario, seed: int, profiles: tuple[Profile, ...] | None = None) -> Result:
        """``profiles``: what the scheduler believes; the truth by default."""
        own = self.scenario(scenario)
        policies = self.policies(own, profiles)
        if self.route is None:
            return run(own, policies, seed)
        route = self.route(own)
        return run(own, policies, seed, lambda made: Replicas(made, route))

    def policies(self, scenario: Scenario, profiles: tuple[Profile, ...] | None = None) -> Policies:
        settings = replace(self.settings, max_requests=WITHOUT_LIMIT)
        believed = profiles or tuple(server.profile for server in scenario.servers)
        policies = elastic_policies(settings, believed)
        if self.roles is not None:
            policies.roles = self.roles(scenario)
        return policies


def with_settings(contender: Contender, **changes: object) -> Contender:
    return replace(contender, settings=replace(contender.settings, **changes))  # type: ignore[arg-type]


# --- servers to start with --------------------------------------------------------------------------------------------


def _first(scenario: Scenario, *, exclusive: bool = False) -> Scenario:
    phase = scenario.workload.phases[0]
    return replace(scenario, servers=with_best_roles(scenario.servers, phase, exclusive=exclusive))


def _average(scenario: Scenario, *, exclusive: bool = False) -> Scenario:
    return replace(scenario, servers=with_best_roles(scenario.servers, mean_phase(scenario), exclusive=exclusive))


def _monolithic(scenario: Scenario) -> Scenario:
    """Every server with all roles, by offloading what does not fit."""
    servers = tuple(_offloading(server) for server in scenario.servers)
    return replace(scenario, servers=servers)


def _offloading(server: ServerSetup) -> ServerSetup:
    if not server.fits(ALL_ROLES):
        offloaded = {"Qwen-Image": "qwen-image-4090-monolithic", "Wan2.2-I2V-A14B": "wan2.2-a14b-a10-monolithic"}
        profile = bundled_profile(offloaded[server.profile.model.name])
        server = replace(server, profile=profile, memory_bytes=None)
    return replace(server, roles=ALL_ROLES, pinned=True)


def _free_switches(scenario: Scenario) -> Scenario:
    """Every server can do everything at any time: what switching would be if it cost nothing."""
    unlimited = 1 << 50
    servers = tuple(replace(s, roles=ALL_ROLES, memory_bytes=unlimited, pinned=True) for s in scenario.servers)
    return replace(scenario, servers=servers)


# --- role policies ----------------------------------------------------------------------------------------------------


def _fleet(scenario: Scenario) -> baseline.Fleet:
    return baseline.renamed(problem(scenario.servers, scenario.workload.phases[0]), scenario.model)


def _fixed(scenario: Scenario) -> None:  # noqa: ARG001
    return None


def _reactive(scenario: Scenario) -> RolePolicy:
    return baseline.Reactive(_fleet(scenario))


def _predict(scenario: Scenario) -> RolePolicy:
    return baseline.Gated(_fleet(scenario), baseline.Predicted())


def _feedback(scenario: Scenario) -> RolePolicy:
    return baseline.Gated(_fleet(scenario), baseline.Measured())


def _oracle(lead: float) -> Callable[[Scenario], RolePolicy]:
    def make(scenario: Scenario) -> RolePolicy:
        server = scenario.servers[0]
        load = sum(part.load_seconds for part in server.profile.roles.values())
        demands = [(began, problem(scenario.servers, phase).demand) for began, phase in scenario.workload.starts()]
        return baseline.Oracle(_fleet(scenario), demands, lead * load)

    return make


# --- routes of replicas -----------------------------------------------------------------------------------------------


def _shortest_request(scenario: Scenario) -> Route:
    """The same order as ours: predicted work plus aging."""
    cost, target = knowing(scenario), scenario.servers[0].target

    def key(request: RequestSpec, now: float) -> float:
        return sum(cost.seconds(job.work, target) for job in request.jobs) + AGING * now

    return Central(key)


def _first_request(scenario: Scenario) -> Route:  # noqa: ARG001
    return Central(lambda request, now: now)  # noqa: ARG005


FIRST_COME = ElasticSettings(ordering=Ordering.FIRST_COME, preemption=False)

PURE = ElasticSettings(aging=0.0, patience=1e6)
"""The least mean latency that an order by size can give; it may starve the largest."""

CONTENDERS: Mapping[str, Contender] = {
    "ours": Contender(),
    "ours, first come": Contender(settings=FIRST_COME),
    "pure shortest first": Contender(settings=PURE),
    "reactive": Contender(lambda s: _first(s, exclusive=True), roles=_reactive),
    "predict only": Contender(_first, roles=_predict),
    "feedback only": Contender(_first, roles=_feedback),
    "static, first phase": Contender(lambda s: _first(s, exclusive=True), roles=_fixed),
    "static, average": Contender(lambda s: _average(s, exclusive=True), roles=_fixed),
    "static, average, role sets": Contender(_average, roles=_fixed),
    "monolithic": Contender(_monolithic, roles=_fixed, route=_first_request),
    "monolithic, shortest first": Contender(_monolithic, roles=_fixed, route=_shortest_request),
    "round robin": Contender(_monolithic, FIRST_COME, _fixed, lambda _: RoundRobin()),
    "join shortest queue": Contender(_monolithic, FIRST_COME, _fixed, lambda _: ShortestQueue()),
    "lower bound": Contender(_free_switches, roles=_fixed),
    **{
        f"oracle, {order}, {lead}": Contender(
            _first, ElasticSettings(ordering=ordering, preemption=ordering is Ordering.SHORTEST), _oracle(ahead)
        )
        for order, ordering in ORDERS.items()
        for lead, ahead in LEADS.items()
    },
}
