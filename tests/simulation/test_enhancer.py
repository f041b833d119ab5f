"""A stage before the encoder, whose words nobody fetches: what its loss costs, and that it is planned for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.cost.profile import Profile, RoleProfile
from scheduler.elastic.build import elastic_policies
from scheduler.elastic.settings import ElasticSettings
from scheduler.policy import Policies
from scheduler.sim.bound import with_best_roles
from scheduler.sim.engine import simulate
from scheduler.sim.metrics import End
from scheduler.sim.setup import Kill, Scenario, ServerSetup
from scheduler.sim.suite import bundled_profile, fleet
from scheduler.sim.workload import Arrival, Kind, Phase, Workload
from wire.types import REQUIRED, Role

PLAIN = Kind("plain", 1024, 1024, 20)
ENHANCED = replace(PLAIN, name="enhanced", enhanced=True, upscaled=True, images=2)
GB = 10**9


def extended(profile: Profile) -> Profile:
    more = {
        Role.ENHANCER: RoleProfile((0.1, 2e-3), 2 * GB, GB, 5.0),
        Role.UPSCALER: RoleProfile((0.1, 4e-6), GB, GB, 5.0, factor=2),
    }
    return replace(profile, roles={**profile.roles, **more})


@pytest.mark.parametrize("policies", [Policies(), elastic_policies(ElasticSettings(elastic_roles=False))])
@pytest.mark.parametrize("kill", [1.3, 3.0])
def test_its_loss_repeats_what_it_was_at_and_nothing_else(policies: Policies, kill: float) -> None:
    """It dies over its prompt, or after that, when its words are with the gateway: each stage is finished once."""
    profile = extended(bundled_profile("flux.1-dev-h100"))
    roles = {"model": set(REQUIRED), "upscaler": {Role.UPSCALER}, "enhancer": {Role.ENHANCER}}
    servers = tuple(ServerSetup(name, profile, frozenset(held), pinned=True) for name, held in roles.items())
    trace = (Arrival(1.0, ENHANCED), Arrival(60.0, PLAIN))

    result = simulate(
        Scenario("losses", servers, Workload(trace=trace), (Kill(kill, "enhancer", restart_after=2.0),)), policies
    )

    assert [request.end for request in result.requests] == [End.FINISHED] * 2
    assert dict(result.attempts) == {
        Role.ENHANCER: 1,
        Role.ENCODER: 2,
        Role.DIT: 3,
        Role.DECODER: 3,
        Role.UPSCALER: 2,
    }


def test_a_server_is_given_the_stage_when_requests_ask_for_it() -> None:
    plain = Phase(1, ((1.0, PLAIN),))
    servers = with_best_roles(fleet(extended(bundled_profile("flux.1-dev-h100")), 4), plain)
    mixed = Phase(200, ((0.5, PLAIN), (0.5, ENHANCED)), rate=0.1)
    result = simulate(Scenario("mixed", servers, Workload((mixed,))), elastic_policies(), seed=1)
    assert {request.end for request in result.requests} == {End.FINISHED}
    assert result.attempts[Role.ENHANCER] > 0
    assert max(result.holders(Role.ENHANCER, at) for at in range(0, 200, 5)) > 0


def test_requests_that_are_enhanced_need_servers_that_can() -> None:
    with pytest.raises(ValueError, match=r"a kind of requests is (upscaled|enhanced), and no server's profile"):
        Scenario("none", tuple(fleet("flux.1-dev-h100", 1)), Workload((Phase(1, ((1, ENHANCED),), rate=1.0),)))
