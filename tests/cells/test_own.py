"""What a gateway says of its own cell, and which servers it lets go."""

from __future__ import annotations

import pytest

from gateway.cells.own import RETURNED_SECONDS
from gateway.cells.rules import Holds
from scheduler import events as ev
from wire.params import ModelInfo
from wire.to_stage import CellState, Unit
from wire.types import REQUIRED, Role

ALL = {"m@1": REQUIRED}
OTHER = ModelInfo(name="n", key="n@1", family="f", dtype="float32")


def holds(*roles: Role) -> Holds:
    return frozenset(("m@1", role) for role in roles or REQUIRED)


def movable(site) -> int:
    return sum(unit.count for unit in site.cell.state().units if unit.moves)


def go(site, *roles: Role) -> str | None:
    """Told to go, as the dispatcher tells the scheduler."""
    chosen = site.cell.departures().choose(holds(*roles), "there")
    if chosen is None:
        return None
    site.tell(ev.ServerLeaving(chosen[0].id))
    return chosen[0].spec.name


def test_servers_that_are_alike_are_counted(site) -> None:
    for name in ("a", "b"):
        site.join(name)
    site.join("old", moves=False)
    units = (Unit(holds=ALL, count=2, moves=True), Unit(holds=ALL))
    assert site.cell.state() == CellState(name="here", gateway="g1", ready=True, units=units)


def test_servers_of_one_process_go_together(site) -> None:
    site.join("gpu", Role.DIT, device="gpu/1")
    site.join("gpu.2", Role.ENCODER, device="gpu/1", model=OTHER)
    (unit,) = site.cell.state().units
    assert unit.holds == {"m@1": (Role.DIT,), "n@1": (Role.ENCODER,)}
    both = frozenset({("m@1", Role.DIT), ("n@1", Role.ENCODER)})
    assert [server.spec.name for server in site.cell.departures().choose(both, "there")] == ["gpu", "gpu.2"]


def test_one_that_was_told_to_go_is_on_its_way_until_it_is_gone(site) -> None:
    server = site.join("a")
    site.join("b")
    assert go(site) == "a"
    assert site.cell.leaving == 1
    assert {unit.going_to for unit in site.cell.state().units} == {"", "there"}
    site.tell(ev.ServerLost(server, "it left"))
    assert site.cell.leaving == 0
    assert site.cell.state().units == (Unit(holds=ALL, moves=True),)


def test_one_that_came_back_is_not_sent_again_soon(site) -> None:
    server = site.join("a")
    go(site)
    site.tell(ev.ServerLost(server, "it left"))
    site.join("a")
    assert site.cell.leaving == 0
    assert go(site) is None
    site.now = RETURNED_SECONDS
    assert movable(site) == 1


def test_one_that_ends_by_itself_is_none_of_the_cell(site) -> None:
    site.tell(ev.ServerLeaving(site.join("a")))
    assert site.cell.state().units == ()


def test_the_last_holder_of_a_role_is_not_safe_to_give(site) -> None:
    site.join("a")
    assert not site.cell.departures().safe(holds())
    site.join("b")
    assert site.cell.departures().safe(holds())
    go(site)
    assert not site.cell.departures().safe(holds()), "as things stand, and not as they are planned"


class TestDraining:
    @pytest.fixture(autouse=True)
    def _draining(self, site) -> None:
        for role in REQUIRED:
            site.join(role.value, role)
        site.cell.is_draining = True

    def test_it_is_not_ready_and_all_may_go(self, site) -> None:
        state = site.cell.state()
        assert (state.draining, state.ready, movable(site)) == (True, False, 3)

    def test_but_not_those_that_requests_under_way_need(self, site) -> None:
        site.request(Role.DIT, Role.DECODER)
        free = [unit.holds for unit in site.cell.state().units if unit.moves]
        assert free == [{"m@1": (Role.ENCODER,)}]
        assert not site.cell.is_empty

    def test_of_several_one_stays(self, site) -> None:
        site.join("second", Role.DIT)
        site.request(Role.ENCODER, Role.DIT, Role.DECODER)
        free = [unit for unit in site.cell.state().units if unit.moves]
        assert free == [Unit(holds={"m@1": (Role.DIT,)}, moves=True)]

    def test_while_a_request_is_still_being_read_nobody_knows_what_it_will_need(self, site) -> None:
        site.under_way = 1
        assert movable(site) == 0

    def test_in_the_end_it_is_empty(self, site) -> None:
        for role in REQUIRED:
            go(site, role)
        assert site.cell.is_empty
        assert site.cell.leaving == 3
