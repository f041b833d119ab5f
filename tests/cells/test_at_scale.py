"""Ten cells in simulation (``benchmarks.cells_at_scale``): every server ends at one gateway, and all have equally many.

The simulation itself checks once a simulated second that no server is at two gateways that work, and that no complete
cell has sent away the last holder of a role.
"""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.cells_at_scale import scenarios
from benchmarks.cells_at_scale.scenarios import Outcome
from benchmarks.cells_at_scale.world import Fleet
from gateway.cells.rules import Move, Why, present
from wire.types import Role

FLEET = Fleet(cells=5, servers=50)


@cache
def outcome_of(name: str) -> Outcome:
    return scenarios.SCENARIOS[name].of(FLEET)


@pytest.mark.parametrize("name", ["start", "loss", "restart", "frozen", "rolling"])
def test_every_server_ends_at_one_gateway_and_they_have_equally_many(name: str) -> None:
    outcome = outcome_of(name)
    assert sum(outcome.spread) == FLEET.servers
    assert len(outcome.spread) == (4 if name == "loss" else 5)
    assert max(outcome.spread) - min(outcome.spread) <= 1
    assert outcome.gave_up == 0


def test_whose_gateway_is_killed_is_served_elsewhere_at_once() -> None:
    outcome = outcome_of("loss")
    assert outcome.served is not None
    assert outcome.served < 0.05


def test_whose_gateway_stands_still_waits_for_its_liveness_alone() -> None:
    outcome = outcome_of("frozen")
    assert outcome.served is not None
    assert 8 <= outcome.served <= 10.05


def test_a_planned_end_sends_each_server_elsewhere_and_few_more_often_than_cells_end() -> None:
    outcome = outcome_of("rolling")
    assert outcome.moves["evacuate"] <= FLEET.servers + 5
    assert outcome.moves["spread"] <= FLEET.servers + 5


def test_with_too_few_holders_one_cell_ends_empty_and_the_others_even() -> None:
    outcome = outcome_of("too-few")
    least, *others = sorted(outcome.spread)
    assert least == 0
    assert sum(others) == FLEET.servers
    assert max(others) - min(others) <= 1


def test_where_gateways_have_no_room_as_many_as_fit_are_served_and_the_others_go_on_asking() -> None:
    outcome = outcome_of("no-room")
    assert outcome.spread == (10,) * 4
    assert outcome.gave_up == 0, "a gateway that is away has not refused them"


def test_those_without_room_are_served_once_the_gateway_is_back() -> None:
    world = scenarios.settled(Fleet(cells=3, servers=30, most=10))
    world.cells[0].end()
    world.run(5.0)
    assert world.homeless == 10
    world.cells[0].begin()
    world.run_until(world.is_served, limit=2.5)


def test_the_same_fleet_has_the_same_fate() -> None:
    assert scenarios.SCENARIOS["loss"].of(FLEET) == outcome_of("loss")


def test_the_simulation_notices_a_cell_that_is_broken() -> None:
    world = scenarios.settled(Fleet(cells=2, servers=30, roles=(Role.ENCODER, Role.DECODER, *[Role.DIT] * 13)))
    broken, other = world.cells
    world.check()
    for holds in present(broken.own.state()):
        broken.carry_out(Move(broken.name, other.name, holds, Why.SPREAD), broken.own.departures())
    with pytest.raises(AssertionError, match="complete cells were broken: \\['cell-00'\\]"):
        world.check()
