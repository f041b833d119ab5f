"""Roles follow the load: events in, role assignments out, with the real solver in between."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.elastic.roles import ElasticRoles
from scheduler.elastic.settings import ElasticSettings
from scheduler.roles.demand import FIRST
from scheduler.roles.gate import PolicySettings
from scheduler.roles.problem import Infeasible, Problem
from scheduler.roles.solver import Plan, plan
from tests.scheduler.game import D, E, V, of
from tests.scheduler_elastic.play import Play
from wire.types import REQUIRED, Role, ServerId

SMALL = 28
"""Gigabytes: encoder and decoder fit together, dit and decoder too, encoder and dit don't."""


class Moving(Play):
    def __init__(self) -> None:
        super().__init__(ElasticSettings(roles=PolicySettings(dwell_seconds=5.0)))
        self.moves: dict[str, do.AssignRoles] = {}

    def post(self, event: ev.Event) -> list[Action]:
        actions = super().post(event)
        for move in of(do.AssignRoles, actions):
            self.moves[move.server] = move
        for order in of(do.SolvePlan, actions):
            actions += self.post(ev.PlanReady(_solved(order.problem)))
        return actions

    def load(self, seconds: float, rate: float, **request: object) -> None:
        """Requests that nobody computes."""
        for _ in range(int(seconds * rate)):
            self.at(self.now + 1 / rate)
            self.want(f"r{self.now:.6f}", **request)  # type: ignore[arg-type]

    def loaded(self, server: str, seconds: float = 1.0) -> None:
        move = self.moves.pop(server)
        self.post(ev.RolesReady(ServerId(server), move.epoch, move.roles, seconds))

    def roles(self, server: str) -> frozenset[Role]:
        return self.scheduler.view.servers[ServerId(server)].roles


def _solved(problem: Problem) -> Plan | None:
    try:
        return plan(problem)
    except Infeasible:
        return None


def exclusive() -> Moving:
    game = Moving()
    for name, roles in (("a", {E}), ("b", {E}), ("c", {E}), ("d", {D}), ("e", {V})):
        game.serve(name, roles, memory_gb=SMALL + 1)
    return game


def test_nothing_moves_while_there_is_little_to_do() -> None:
    game = exclusive()
    game.load(60, 0.05)
    assert not game.moves


def test_under_load_servers_go_where_the_work_is_and_say_why() -> None:
    game = exclusive()
    game.load(40, 2.0)
    assert game.moves
    assert any(D in move.roles for move in game.moves.values())
    assert all("capacity" in move.reason for move in game.moves.values())
    view = game.scheduler.view
    assert all(view.serving(server.spec.model, role) for server in view.servers.values() for role in REQUIRED)


def test_twenty_requests_are_enough_to_plan_by_and_fewer_are_not() -> None:
    game = exclusive()
    game.load(FIRST / 2 - 1, 2.0)
    assert not game.moves
    game.load(4, 2.0)
    assert game.moves
    assert FIRST == 20, "slow square waves are missed with more: docs/scheduling.md"


def test_the_first_holder_of_a_role_comes_at_once() -> None:
    game = Moving()
    game.serve("a", {E})
    game.serve("b", {D})
    game.load(3, 1.0)
    assert any(V in move.roles for move in game.moves.values())
    assert any("no server held decoder" in move.reason for move in game.moves.values())


def test_a_server_that_has_moved_stays_for_a_while() -> None:
    game = exclusive()
    game.load(40, 2.0)
    moved = next(iter(game.moves))
    game.loaded(moved)
    since = game.now
    game.load(4, 2.0)
    assert moved not in game.moves
    assert game.now - since < 5


def test_a_server_that_could_not_load_is_left_alone() -> None:
    game = exclusive()
    game.load(40, 2.0)
    server, move = next(iter(game.moves.items()))
    held = game.roles(server)
    game.moves.clear()
    game.post(ev.RolesFailed(ServerId(server), move.epoch, held, "out of memory"))
    game.load(10, 2.0)
    assert server not in game.moves


def test_where_everything_fits_everywhere_nothing_is_planned() -> None:
    game = Moving()
    for name in ("a", "b"):
        game.serve(name)
    game.load(40, 3.0)
    assert not game.moves


def seconds(game: Moving, role: Role, *, warm: bool = False) -> float:
    """What loading is taken to take."""
    roles = game.scheduler.policies.roles
    assert isinstance(roles, ElasticRoles)
    return roles._loads.seconds(game.scheduler.view.servers[ServerId("a")].spec, role, warm=warm)


def test_measured_loads_correct_announced_ones() -> None:
    game = exclusive()
    game.load(40, 2.0)
    server, move = next(iter(game.moves.items()))
    view = game.scheduler.view
    added = move.roles - view.servers[ServerId(server)].roles
    announced = sum(view.servers[ServerId(server)].spec.capable[role].load_seconds for role in added)
    before = {role: seconds(game, role) for role in added}
    game.loaded(server, 10 * announced)
    assert {role: seconds(game, role) for role in added} == pytest.approx(
        {role: 10**0.3 * before[role] for role in added}
    )


def test_so_do_loads_that_an_operator_ordered_of_what_was_added_each_time() -> None:
    game = exclusive()
    needs = game.scheduler.view.servers[ServerId("a")].spec.capable
    game.post(ev.RolesOrdered(ServerId("a"), frozenset({D})))
    first = game.moves["a"]
    game.post(ev.RolesOrdered(ServerId("a"), frozenset({D, V})))
    game.post(ev.RolesReady(ServerId("a"), first.epoch, first.roles, needs[D].load_seconds))
    game.loaded("a", 10 * needs[V].load_seconds)
    assert seconds(game, V) == pytest.approx(10**0.3 * needs[V].load_seconds)
    assert seconds(game, D) == pytest.approx(needs[D].load_seconds)


def test_a_server_that_claims_what_it_cannot_have_is_not_believed() -> None:
    game = Moving()
    for name, roles in (("a", {E, D, V}), ("b", {E})):
        game.serve(name, roles)
    game.post(ev.RolesOrdered(ServerId("b"), frozenset({V})))
    game.post(ev.RolesReady(ServerId("b"), game.moves["b"].epoch, frozenset({V, "none"}), 1.0))  # type: ignore[arg-type]
    assert game.roles("b") == {V}


def test_people_can_ask_why() -> None:
    game = exclusive()
    game.load(10, 0.5)
    roles = game.scheduler.policies.roles
    assert isinstance(roles, ElasticRoles)
    ((_, why),) = roles.explain().values()
    assert why
