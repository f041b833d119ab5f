"""Role switches in the core: who decides is ``scheduler.roles``, what happens then is here."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler import actions as do
from scheduler import events as ev
from scheduler.policy import Policies
from scheduler.roles.problem import Problem
from scheduler.roles.solver import Plan
from scheduler.state import Request, Server
from scheduler.view import View
from tests.scheduler.game import ALL, MODEL, D, E, Game, V, of, runs
from tests.scheduler_roles.builders import problem, server_class, servers
from wire.types import Epoch, Role, ServerId

Moves = Sequence[tuple[ServerId, frozenset[Role], str]]
SOME_PROBLEM = problem([server_class()], servers("gpu", ALL), {E: 1.0, D: 1.0, V: 1.0})
SOME_PLAN = Plan({}, 1.0, 1.0, 1.0, SOME_PROBLEM)


class Wishes:
    """A role policy that wants what the test wants."""

    period_seconds = 1.0

    def __init__(self, *moves: tuple[str, set[Role]]):
        self.moves: Moves = [(ServerId(server), frozenset(roles), "a wish") for server, roles in moves]
        self.wishes: Moves = []
        self.switches: list[tuple[str, float]] = []

    def arrived(self, request: Request, view: View, now: float) -> None: ...

    def consider(self, view: View, now: float) -> tuple[Problem, str]:
        return SOME_PROBLEM, "as ever"

    def accept(self, plan: Plan, view: View, now: float) -> Moves:
        return self.moves

    def likely(self) -> Moves:
        return self.wishes

    def switched(
        self, server: Server, added: frozenset[Role], load_seconds: float, now: float, *, from_host: bool
    ) -> None:
        self.switches.append((server.id, load_seconds))


def order(game: Game, server: str, roles: set[Role]) -> Epoch:
    (assign,) = of(do.AssignRoles, game.post(ev.RolesOrdered(ServerId(server), frozenset(roles))))
    assert (assign.server, assign.roles) == (server, roles)
    return assign.epoch


def ready(game: Game, server: str, epoch: Epoch, roles: set[Role]) -> list[do.Action]:
    return game.post(ev.RolesReady(ServerId(server), epoch, frozenset(roles), 2.0))


def failed(game: Game, server: str, epoch: Epoch, roles: set[Role]) -> list[do.Action]:
    return game.post(ev.RolesFailed(ServerId(server), epoch, frozenset(roles), "out of memory"))


def test_a_switching_server_gets_jobs_only_for_roles_that_stay() -> None:
    game = Game()
    game.join("a", {E, V})
    epoch = order(game, "a", {D, V})
    assert not runs(game.ask("r"))
    assert set(game.scheduler.view.serving(MODEL, V)) == {"a"}
    assert not game.scheduler.view.serving(MODEL, E)
    assert not game.scheduler.view.serving(MODEL, D)
    ready(game, "a", epoch, {D, V})
    assert set(game.scheduler.view.serving(MODEL, D)) == {"a"}


def test_waiting_jobs_go_to_a_server_as_soon_as_it_holds_their_role() -> None:
    game = Game()
    game.ask("r")
    game.join("a", {D})
    epoch = order(game, "a", {E, D})
    assert runs(ready(game, "a", epoch, {E, D})) == [("r/e", "a")]


def test_a_failed_switch_restores_the_former_roles() -> None:
    game = Game()
    game.join("a", {E})
    epoch = order(game, "a", {D})
    game.ask("r")
    assert runs(failed(game, "a", epoch, {E})) == [("r/e", "a")]


def test_a_report_about_an_order_that_was_replaced_means_nothing() -> None:
    game = Game()
    game.join("a", {E})
    first = order(game, "a", {D})
    second = order(game, "a", {V})
    failed(game, "a", first, {E})
    assert not game.scheduler.view.serving(MODEL, E)
    ready(game, "a", second, {V})
    assert set(game.scheduler.view.serving(MODEL, V)) == {"a"}


def test_an_order_does_not_bring_back_a_role_that_an_earlier_one_took() -> None:
    game = Game()
    game.join("a", {E})
    order(game, "a", {D})
    game.ask("r")
    second = order(game, "a", {E, V})
    assert not game.jobs_on("a")  # it may already be loading what the first one wanted
    assert runs(ready(game, "a", second, {E, V})) == [("r/e", "a")]


def test_a_switch_that_ends_after_the_server_joined_again_counts() -> None:
    game = Game()
    game.join("a", {E})
    epoch = order(game, "a", {D})
    game.join("a", {E})
    ready(game, "a", epoch, {D})
    assert set(game.scheduler.view.serving(MODEL, D)) == {"a"}
    assert not game.scheduler.view.serving(MODEL, E)


def test_a_job_under_way_is_finished_although_its_role_goes() -> None:
    game = Game()
    game.join("a", {E, D, V})
    game.ask("r")
    order(game, "a", {D, V})
    assert runs(game.through("r/e")) == [("r/d0", "a")]


def test_a_leaving_server_does_not_come_back_by_a_switch() -> None:
    game = Game()
    game.join("a", {E})
    epoch = order(game, "a", {D})
    game.post(ev.ServerLeaving(ServerId("a")))
    ready(game, "a", epoch, {D})
    assert not game.scheduler.view.serving(MODEL, D)


# --- plans ------------------------------------------------------------------------------------------------------------


def planned(policy: Wishes, *fleet: tuple[str, set[Role]]) -> tuple[Game, list[do.Action]]:
    """A game in which a plan has just come back."""
    game = Game(Policies(roles=policy))
    for name, roles in fleet:
        game.join(name, roles)
    game.at(1.0)
    return game, game.post(ev.PlanReady(SOME_PLAN))


def test_a_plan_is_asked_for_once_at_a_time() -> None:
    game = Game(Policies(roles=Wishes()))
    game.join("a")
    assert len(of(do.SolvePlan, game.at(0.0))) == 1
    assert not of(do.SolvePlan, game.at(1.0))
    game.post(ev.PlanReady(None))
    assert len(of(do.SolvePlan, game.at(2.0))) == 1


def test_moves_of_a_plan() -> None:
    policy = Wishes(("a", {D}))
    game, actions = planned(policy, ("a", {E}), ("b", {E}))
    (assign,) = of(do.AssignRoles, actions)
    assert (assign.server, assign.roles, assign.reason) == ("a", {D}, "a wish")
    ready(game, "a", assign.epoch, {D})
    assert policy.switches == [("a", 2.0)]


def test_the_last_holder_of_a_role_is_never_taken_away() -> None:
    _, actions = planned(Wishes(("a", {D}), ("b", {D})), ("a", {E}), ("b", {E}))
    assert [assign.server for assign in of(do.AssignRoles, actions)] == ["a"]


def test_a_role_may_be_added_to_its_last_holder() -> None:
    _, actions = planned(Wishes(("a", {E, D})), ("a", {E}))
    assert [assign.server for assign in of(do.AssignRoles, actions)] == ["a"]


def test_plans_leave_pinned_switching_leaving_and_lost_servers_alone() -> None:
    policy = Wishes(("pinned", {D}), ("moving", {D}), ("leaving", {D}), ("gone", {D}), ("same", {E}))
    game = Game(Policies(roles=policy))
    for name in ("pinned", "moving", "leaving", "gone", "same", "other"):
        game.join(name, {E})
    game.post(ev.ServerPinned(ServerId("pinned"), pinned=True))
    order(game, "moving", {V})
    game.post(ev.ServerLeaving(ServerId("leaving")))
    game.lose("gone")
    game.at(1.0)
    assert not of(do.AssignRoles, game.post(ev.PlanReady(SOME_PLAN)))


def test_an_infeasible_plan_changes_nothing() -> None:
    game = Game(Policies(roles=Wishes(("a", {D}))))
    game.join("a", {E})
    game.join("b", {E})
    game.at(0.0)
    assert game.post(ev.PlanReady(None)) == []


# --- host memory ------------------------------------------------------------------------------------------------------


def test_a_policy_may_have_roles_read_ahead_and_hears_what_became_of_it() -> None:
    policy = Wishes()
    policy.wishes = [(ServerId("a"), frozenset({V}), "it may come"), (ServerId("gone"), frozenset({V}), "")]
    game = Game(Policies(roles=policy))
    game.join("a", {E})
    (wish,) = of(do.Preload, game.post(ev.PlanReady(SOME_PLAN)))
    assert (wish.server, wish.roles) == ("a", {V})
    server = game.scheduler.view.servers[ServerId("a")]
    game.post(ev.RolesWarm(ServerId("a"), frozenset({V})))
    assert (server.warm, server.serving) == ({V}, {E})


def test_what_a_server_cannot_take_is_not_believed_to_be_warm() -> None:
    game = Game()
    game.join("a", {E}, capable={E, D})
    game.post(ev.RolesWarm(ServerId("a"), frozenset({D, V})))
    assert game.scheduler.view.servers[ServerId("a")].warm == {D}


def test_kept_roles_get_jobs_throughout_a_switch() -> None:
    game = Game()
    game.join("a", {E, D})
    game.post(ev.RolesOrdered(ServerId("a"), frozenset({E, V})))
    assert runs(game.ask("r")) == [("r/e", "a")]
