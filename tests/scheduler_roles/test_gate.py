from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from scheduler.roles.bound import capacity, fluid_bound
from scheduler.roles.demand import DemandEstimator
from scheduler.roles.gate import PolicySettings, RoleGate, Snapshot, utilisation
from scheduler.roles.problem import RoleSet
from scheduler.roles.reading_ahead import PATIENCE, RoleMove, ServerState
from scheduler.roles.solver import plan
from tests.scheduler_roles.builders import ALL, D, E, V, problem, server_class, servers
from wire.types import REQUIRED, Role, ServerId

MID = server_class("mid", 29)
BIG = server_class("big", 80)


def states(*held: set[Role] | RoleSet, cls: str = "mid", **fields: object) -> tuple[ServerState, ...]:
    return tuple(ServerState(ServerId(f"s{i}"), cls, frozenset(roles), **fields) for i, roles in enumerate(held))


def snapshot(members: tuple[ServerState, ...], demand: dict[Role, float], **fields: object) -> Snapshot:
    return Snapshot({"mid": MID, "big": BIG}, members, demand, **fields)


def moves(policy: RoleGate, shot: Snapshot, now: float = 100.0) -> tuple[RoleMove, ...]:
    case = policy.consider(shot, now)
    return () if case is None else policy.accept(plan(case), shot, now)


DIT_HEAVY = {E: 0.1, D: 3.6, V: 0.1}
LOPSIDED = states({D}, {E}, {E}, {V}, {V})


def test_the_bottleneck_gets_servers() -> None:
    result = moves(RoleGate(), snapshot(LOPSIDED, DIT_HEAVY))
    assert result
    assert all(D in move.roles for move in result)
    assert "capacity 0.28 → " in result[0].reason


def test_a_class_may_die_out_while_a_plan_is_made() -> None:
    policy = RoleGate()
    members = (*LOPSIDED, ServerState(ServerId("last"), "big", frozenset({E})))
    case = policy.consider(snapshot(members, DIT_HEAVY), 100.0)
    assert case is not None
    later = Snapshot({"mid": MID}, LOPSIDED, DIT_HEAVY, doubt=dict.fromkeys(DIT_HEAVY, 0.1))
    assert policy.accept(plan(case), later, 100.0)


def test_light_load_holds_still_whatever_the_split() -> None:
    light = {E: 0.05, D: 0.55, V: 0.05}
    assert RoleGate().consider(snapshot(LOPSIDED, light), 100.0) is None


def test_what_is_measured_overrides_what_is_predicted() -> None:
    light = {E: 0.05, D: 0.55, V: 0.05}
    assert RoleGate().consider(snapshot(LOPSIDED, light, busy={D: 0.9}), 100.0) is not None


def test_a_role_with_work_gets_its_first_holder_at_any_load() -> None:
    result = moves(RoleGate(), snapshot(states({E}, {D}, {D}), {E: 0.01, D: 0.01, V: 0.01}))
    assert len(result) == 1
    assert V in result[0].roles
    assert result[0].reason == "no server held decoder"


def test_no_demand_no_servers_no_plan() -> None:
    assert RoleGate().consider(snapshot(LOPSIDED, {E: 0.0, D: 0.0, V: 0.0}), 1.0) is None
    assert RoleGate().consider(snapshot((), DIT_HEAVY), 1.0) is None


def test_plans_keep_their_interval() -> None:
    policy = RoleGate()
    assert policy.consider(snapshot(LOPSIDED, DIT_HEAVY), 100.0) is not None
    assert policy.consider(snapshot(LOPSIDED, DIT_HEAVY), 100.5) is None
    assert policy.consider(snapshot(LOPSIDED, DIT_HEAVY), 101.0) is not None


MANY = states({D}, {D}, {D}, {D}, {D}, {D}, {D}, {D}, {E, V})


def test_a_small_gain_is_not_worth_a_move() -> None:
    shot = snapshot(MANY, {E: 0.4, D: 7.6, V: 0.65})
    assert moves(RoleGate(PolicySettings(least_gain=0.1)), shot) == ()
    assert moves(RoleGate(PolicySettings(least_gain=0.0)), shot) != ()


def test_a_gain_that_a_small_error_would_turn_into_a_loss_is_none() -> None:
    sure = snapshot(states({D}, {D}, {D}, {D}, {D}, {E}, {V}), {E: 0.4, D: 4.0, V: 1.2})
    unsure = replace(sure, doubt={E: 0.0, D: 0.0, V: 0.4})
    policy = PolicySettings(exclusive=True, standard_errors=1.0)
    assert [move.roles for move in moves(RoleGate(policy), sure)] == [{V}]
    assert moves(RoleGate(policy), unsure) == ()
    assert moves(RoleGate(replace(policy, standard_errors=0.0)), unsure) != ()


def test_of_equals_the_one_that_is_free_first_moves() -> None:
    members = tuple(replace(s, drain_seconds=5.0 - i) for i, s in enumerate(states({E}, {E}, {E}, {V}, {D})))
    members = (*members[:3], replace(members[3], pinned=True), members[4])
    result = moves(RoleGate(PolicySettings(moving_share=0.2, exclusive=True)), snapshot(members, DIT_HEAVY))
    assert [move.server for move in result] == ["s2"]


def test_a_switch_must_pay_for_itself() -> None:
    assert moves(RoleGate(PolicySettings(payback_seconds=0.1)), snapshot(LOPSIDED, DIT_HEAVY)) == ()


def test_pinned_switching_and_fresh_servers_are_left_alone() -> None:
    free = replace(LOPSIDED[0], changed_at=-1000.0)
    pinned = tuple(replace(server, pinned=True) for server in LOPSIDED[1:])
    fresh = tuple(replace(server, changed_at=95.0) for server in LOPSIDED[1:])
    switching = tuple(replace(server, switching_to=server.roles) for server in LOPSIDED[1:])
    for others in (pinned, fresh, switching):
        assert moves(RoleGate(), snapshot((free, *others), DIT_HEAVY)) == ()


def test_not_all_servers_switch_at_once_and_the_rest_follow() -> None:
    policy = RoleGate(PolicySettings(moving_share=0.25, dwell_seconds=1.0))
    members = states({E}, {D}, {V}, {V}, {V}, {V}, {V}, {V})
    demand = {E: 0.1, D: 6.0, V: 0.5}
    first = moves(policy, snapshot(members, demand))
    assert len(first) == 2
    done = {move.server: move.roles for move in first}
    members = tuple(replace(s, roles=done.get(s.id, s.roles), changed_at=105.0) for s in members)
    assert len(moves(policy, snapshot(members, demand), now=110.0)) == 2


def test_the_last_warm_holder_stays() -> None:
    """A swap over two classes would leave both roles empty for a while."""
    quick = server_class("quick", 25, dit=5.0)
    classes = {"quick": replace(quick, memory_bytes=10**12), "slow": server_class("slow", 25)}
    members = (
        ServerState(ServerId("a"), "quick", frozenset({E, V})),
        ServerState(ServerId("b"), "slow", frozenset({D})),
    )
    shot = Snapshot(classes, members, {E: 1.0, D: 5.0, V: 0.1})
    for move in moves(RoleGate(), shot):
        held = {server.id: server.roles for server in members}
        assert held[move.server] <= move.roles


def test_a_plan_for_servers_that_changed_meanwhile_is_dropped() -> None:
    policy = RoleGate()
    case = policy.consider(snapshot(LOPSIDED, DIT_HEAVY), 100.0)
    assert case is not None
    made = plan(case)
    changed = tuple(replace(server, roles=frozenset({E, V})) for server in LOPSIDED[1:])
    assert policy.accept(made, snapshot((LOPSIDED[0], *changed), DIT_HEAVY), 100.0) == ()
    assert policy.accept(made, snapshot(LOPSIDED[:1], DIT_HEAVY), 100.0) == ()


def test_utilisation_of_equal_servers_is_exact() -> None:
    shot = snapshot(states({D, V}, {D, V}, {E, V}, {E}), {E: 0.7, D: 1.5, V: 0.8})
    case = problem([MID], servers("mid", {D, V}, {D, V}, {E, V}, {E}), shot.demand)
    assert utilisation(shot) == pytest.approx(1 / capacity(case), rel=1e-4)
    assert utilisation(snapshot(states({D}), DIT_HEAVY)) == float("inf")


@pytest.mark.parametrize("fields", [{"moving_share": 0.0}, {"least_gain": -1.0}])
def test_impossible_settings_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"moving_share|least_gain"):
        PolicySettings(**fields)


# The policy with estimator and solver, on a model of the servers that knows only roles and switching times.

Draw = Callable[[random.Random], dict[Role, float]]


def standard_mix(draw: random.Random) -> dict[Role, float]:
    dit = draw.choices((1.7, 5.0, 10.0, 42.0), (15, 25, 45, 15))[0]
    return {E: 0.5, D: dit, V: 0.07 * dit}


class Fleet:
    """Servers that switch in the time their class says; Poisson arrivals; plans come back at once."""

    def __init__(self, members: tuple[ServerState, ...], seed: int, settings: PolicySettings):
        self.members = members
        self.now = 0.0
        self.moves: list[tuple[float, RoleMove]] = []
        self._draw = random.Random(seed)
        self._estimator = DemandEstimator()
        self._policy = RoleGate(settings)
        self._ready: dict[ServerId, float] = {}
        self._next = 0.0
        self._true: dict[Role, float] = {}

    def run(self, seconds: float, rate: float, work: Draw, every: float = 1.0) -> None:
        end = self.now + seconds
        sample = [work(self._draw) for _ in range(200)]
        self._true = {role: rate * sum(w[role] for w in sample) / len(sample) for role in REQUIRED}
        while self.now < end:
            self.now += every
            while self._next <= self.now:
                self._estimator.arrived(work(self._draw), self._next)
                self._next += self._draw.expovariate(rate)
            self._finish()
            self._tick()

    def capacity_share(self, demand: dict[Role, float]) -> float:
        """Of what any roles could serve of ``demand``."""
        case = problem([MID, BIG], servers("mid", *[s.roles for s in self.members]), demand)
        return capacity(case) / fluid_bound(case).capacity

    def _finish(self) -> None:
        self.members = tuple(
            replace(s, roles=s.coming, switching_to=None, changed_at=self.now)
            if s.switching_to is not None and self._ready[s.id] <= self.now
            else s
            for s in self.members
        )

    def _tick(self) -> None:
        shot = snapshot(self.members, self._estimator.demand(self.now), doubt=self._estimator.doubt())
        shot = replace(shot, busy=dict.fromkeys(shot.demand, utilisation(replace(shot, demand=self._true))))
        for move in moves(self._policy, shot, self.now):
            self.moves.append((self.now, move))
            old = next(s for s in self.members if s.id == move.server)
            load = sum(MID.needs[role].load_seconds for role in move.roles - old.roles)
            self._ready[move.server] = self.now + load
            self.members = tuple(replace(s, switching_to=move.roles) if s is old else s for s in self.members)


@pytest.mark.parametrize("exclusive", [False, True])
def test_steady_load_needs_no_role_changes_once_settled(exclusive: bool) -> None:
    fleet = Fleet(states({E}, {D}, {D}, {D}, {D}, {V}, {V}, {V}), 1, PolicySettings(exclusive=exclusive))
    fleet.run(300, 0.42, standard_mix, every=10.0)
    fleet.moves.clear()
    fleet.run(1800, 0.42, standard_mix, every=10.0)
    assert len(fleet.moves) <= 1


def test_hours_of_light_load_change_nothing() -> None:
    fleet = Fleet(states({E}, {D}, {D}, {D}, {D}, {D}, {D}, {V}), 2, PolicySettings())
    fleet.run(4 * 3600, 0.2, lambda _: {E: 0.2, D: 8.0, V: 0.5}, every=2.0)
    assert fleet.moves == []


@pytest.mark.parametrize("seed", range(2))
def test_a_shift_is_followed_within_twenty_arrivals_and_the_switch(seed: int) -> None:
    """The paper's workload: 4-step requests become 1-step requests, at twice the rate."""
    rate = 0.08
    fleet = Fleet(states({E}, {D}, {D}, {D}, {D}, {D}, {D}, {V}), seed, PolicySettings())
    fleet.run(200 / rate, rate, lambda _: {E: 5.0, D: 74.2, V: 9.0}, every=10.0)
    after = {E: 5.0, D: 18.6, V: 9.0}
    slowest = max(need.load_seconds for need in MID.needs.values())
    fleet.run(20 / (2 * rate) + slowest + 10, 2 * rate, lambda _: after)
    assert fleet.capacity_share(after) > 0.95


def test_everything_fits_so_a_busy_split_is_fused() -> None:
    split = states({D}, {D}, {D}, {E, V}, cls="big")
    result = moves(RoleGate(), snapshot(split, {E: 0.5, D: 3.0, V: 0.3}))
    assert {move.roles for move in result} <= {ALL, frozenset({D, V}), frozenset({E, D}), frozenset({D, E, V})}


# --- reading ahead ----------------------------------------------------------------------------------------------------


def test_a_server_keeps_its_roles_until_it_has_read_those_that_it_is_given() -> None:
    policy = RoleGate(PolicySettings(exclusive=True, moving_share=0.2))
    members = states({E}, {E}, {E}, {V}, {D}, reads_ahead=True)
    assert moves(policy, snapshot(members, DIT_HEAVY), now=100.0) == ()
    (wish,) = policy.wishes()
    assert wish.roles == {D}
    assert "1 read weights ahead" in policy.verdict
    assert moves(policy, snapshot(members, DIT_HEAVY), now=101.0) == ()
    assert policy.wishes() == ()  # said once
    read = tuple(replace(s, in_host=frozenset({D})) if s.id == wish.server else s for s in members)
    (move,) = moves(policy, snapshot(read, DIT_HEAVY), now=102.0)
    assert (move.server, move.roles) == (wish.server, {D})


def test_a_server_that_has_no_room_to_read_ahead_moves_all_the_same() -> None:
    policy = RoleGate(PolicySettings(exclusive=True, moving_share=0.2))
    members = states({E}, {E}, {E}, {V}, {D}, reads_ahead=True)
    assert moves(policy, snapshot(members, DIT_HEAVY), now=100.0) == ()
    reading = MID.needs[D].load_seconds
    assert moves(policy, snapshot(members, DIT_HEAVY), now=100.0 + reading) == ()
    assert len(moves(policy, snapshot(members, DIT_HEAVY), now=101.0 + PATIENCE * reading)) == 1


def test_a_role_that_nobody_holds_does_not_wait_for_reading() -> None:
    members = states({E}, {E}, {V}, reads_ahead=True)
    assert moves(RoleGate(PolicySettings(exclusive=True)), snapshot(members, DIT_HEAVY))


def test_a_server_that_gives_nothing_up_loads_at_once() -> None:
    members = states({D}, {E}, {V}, reads_ahead=True)
    policy = RoleGate()
    found = moves(policy, snapshot(members, {E: 0.7, D: 0.7, V: 1.3}))
    assert found
    assert all(move.roles > next(s.roles for s in members if s.id == move.server) for move in found)
    assert policy.wishes() == ()


def test_what_might_be_worth_it_is_read_before_it_is_sure() -> None:
    members = states({E}, {D}, {D}, {V}, reads_ahead=True)
    sure = snapshot(members, {E: 0.9, D: 0.9, V: 0.9 * 1.7})
    unsure = replace(sure, doubt=dict.fromkeys(ALL, 2.0))
    policy = RoleGate(PolicySettings(exclusive=True))
    assert moves(policy, unsure) == ()
    assert "too unsure" in policy.verdict
    assert [wish.roles for wish in policy.wishes()] == [{V}]


def test_what_comes_out_of_host_memory_pays_sooner() -> None:
    policy = PolicySettings(exclusive=True, payback_seconds=2.0)
    quick = replace(MID, needs={role: replace(need, warm_seconds=0.1) for role, need in MID.needs.items()})
    members = states({E}, {E}, {E}, {V}, {D})
    cold = Snapshot({"mid": quick}, members, DIT_HEAVY)
    warm = replace(cold, servers=tuple(replace(s, in_host=ALL - s.roles) for s in members))
    assert moves(RoleGate(policy), cold) == ()
    assert moves(RoleGate(policy), warm) != ()


def test_of_equals_the_one_that_has_the_weights_moves() -> None:
    members = states({E}, {E}, {E}, {V}, {D}, reads_ahead=True)
    members = (*members[:2], replace(members[2], in_host=frozenset({D})), *members[3:])
    (move,) = moves(RoleGate(PolicySettings(exclusive=True, moving_share=0.2)), snapshot(members, DIT_HEAVY))
    assert move.server == "s2"


def test_mixes_that_alternate_get_roles_that_carry_both_and_then_nothing_moves() -> None:
    policy = RoleGate(PolicySettings(exclusive=True, dwell_seconds=0.0, moving_share=1.0))
    drawing, editing = {E: 0.3, D: 3.0, V: 0.6}, {E: 2.4, D: 1.0, V: 0.6}
    held = {s.id: s.roles for s in states(*[{E}] * 2, *[{D}] * 3, *[{V}] * 2, {D}, {E})}
    counts = []
    for half in range(8):
        demand = (drawing, editing)[half % 2]
        moved = 0
        for tick in range(5):
            members = tuple(ServerState(server, "mid", roles) for server, roles in held.items())
            found = moves(policy, snapshot(members, demand), now=60.0 * half + 10.0 * tick)
            held |= {move.server: move.roles for move in found}
            moved += len(found)
        counts.append(moved)
    assert sum(counts[:3]) > 0
    assert counts[4:] == [0, 0, 0, 0], counts
    assert "roles carry both" in policy.verdict
