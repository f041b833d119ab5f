"""A stage that only some requests pass through: who is given it, for how long, and what its loss costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.cost.profile import Profile, RoleProfile
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.policy import Policies
from scheduler.roles.gate import PolicySettings
from scheduler.sim.bound import fluid_rate, with_best_roles
from scheduler.sim.engine import simulate
from scheduler.sim.metrics import End
from scheduler.sim.setup import Kill, Scenario, ServerSetup
from scheduler.sim.suite import bundled_profile, fleet
from scheduler.sim.workload import Arrival, Kind, Phase, Workload
from wire.types import REQUIRED, Role

PLAIN = Kind("plain", 1024, 1024, 20)
UPSCALED = replace(PLAIN, name="upscaled", upscaled=True)
BOTH = ((0.5, PLAIN), (0.5, UPSCALED))
GB = 10**9


def with_upscaler(profile: Profile, weights_bytes: int) -> Profile:
    upscaler = RoleProfile((0.1, 4e-6), weights_bytes, 5 * GB, 10.0, factor=2)
    return replace(profile, roles={**profile.roles, Role.UPSCALER: upscaler})


def test_a_server_has_the_stage_while_it_is_asked_for_and_not_before_or_after():
    """Beside a dit there is no room for this one: while nobody asks for it, it would cost a fifth of the capacity."""
    profile = with_upscaler(bundled_profile("qwen-image-4090-offload"), 15 * GB)
    alone = Phase(400, ((1.0, PLAIN),))
    servers = with_best_roles(fleet(profile, 6), alone)
    quiet = replace(alone, rate=0.97 * fluid_rate(servers, alone))
    mixed = Phase(400, BOTH, rate=0.9 * fluid_rate(servers, Phase(1, BOTH)))

    policies = elastic_policies(ElasticSettings(roles=PolicySettings(interval_seconds=5.0)))  # a plan takes a while
    result = simulate(Scenario("mixed", servers, Workload((quiet, mixed, quiet))), policies, seed=1)

    assert {request.end for request in result.requests} == {End.FINISHED}
    assert result.attempts[Role.UPSCALER] > 0
    holders = [result.holders(Role.UPSCALER, at) for at in (390.0, 780.0, 1190.0)]
    assert holders == [0, 1, 0]
    assert all(result.holders(role, at) > 0 for role in REQUIRED for at in range(10, 1200, 10))
    assert result.moves[0][2] == "no server held upscaler"


@pytest.mark.parametrize("policies", [Policies(), elastic_policies(ElasticSettings(elastic_roles=False))])
def test_what_is_lost_with_its_server_is_made_again_and_nothing_else(policies):
    """The first upscaler dies over its first picture, the only decoder a little later with what it left."""
    profile = with_upscaler(bundled_profile("flux.1-dev-h100"), GB)
    roles = {"model": {Role.ENCODER, Role.DIT}, "decoder": {Role.DECODER}, "upscaler": {Role.UPSCALER}}
    servers = tuple(ServerSetup(name, profile, frozenset(held), pinned=True) for name, held in roles.items())
    faults = (Kill(4.5, "upscaler", restart_after=2.0), Kill(4.6, "decoder", restart_after=1.0))
    trace = (Arrival(1.0, UPSCALED), Arrival(30.0, UPSCALED), Arrival(60.0, PLAIN))

    result = simulate(Scenario("losses", servers, Workload(trace=trace), faults), policies)

    assert [request.end for request in result.requests] == [End.FINISHED] * 3
    assert dict(result.attempts) == {Role.ENCODER: 3, Role.DIT: 3, Role.DECODER: 4, Role.UPSCALER: 2}


def test_requests_that_are_upscaled_need_servers_that_can():
    with pytest.raises(ValueError, match=r"a kind of requests is upscaled, and no server's profile has a section"):
        Scenario("none", tuple(fleet("flux.1-dev-h100", 1)), Workload((Phase(1, BOTH, rate=1.0),)))
