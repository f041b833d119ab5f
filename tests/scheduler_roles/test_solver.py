from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.roles.bound import capacity, fluid_bound
from scheduler.roles.problem import Infeasible, Problem, RoleNeed, ServerClass
from scheduler.roles.solver import best_integer, plan
from tests.scheduler_roles.builders import ALL, GB, D, E, V, problem, server_class, servers

MIX = {E: 0.05, D: 1.0, V: 0.1}
FITS = server_class("big", 80)
PAIRS = server_class("mid", 29)  # {dit, decoder} fits, the three do not
SINGLE = server_class("small", 28, speed=0.5)


def test_everything_fits_so_every_server_holds_every_role() -> None:
    result = plan(problem([FITS], servers("big", *[set()] * 8), MIX))
    assert set(result.assignment.values()) == {ALL}
    assert result.capacity == pytest.approx(8 / 1.15, rel=1e-4)


@pytest.mark.parametrize(("common", "fit"), [({}, False), ({"t5": 4}, True), ({"clip": 1}, False)])
def test_stages_with_something_in_common_take_room_for_it_once(common: dict[str, int], fit: bool) -> None:
    needs = {E: RoleNeed(1.0, 6, 1, common_bytes=common), D: RoleNeed(1.0, 7, 2, common_bytes=common)}
    assert ServerClass("gpu", 11, needs).fits(frozenset({E, D})) is fit


def test_a_split_that_costs_capacity_is_fused() -> None:
    split = problem([FITS], servers("big", *[{D}] * 7, {E, V}), MIX)
    assert capacity(split) == pytest.approx(6.667, rel=0.08)
    assert plan(split).capacity >= 0.995 * 8 / 1.15


def test_memory_forces_a_split_and_roles_share_servers_where_they_fit() -> None:
    result = plan(problem([PAIRS], servers("mid", *[set()] * 8), MIX))
    assert ALL not in result.assignment.values()
    exclusive = best_integer(problem([PAIRS], servers("mid", *[set()] * 8), MIX, exclusive=True))
    assert result.capacity > 1.05 * exclusive.capacity


def test_the_bound_is_the_fluid_one() -> None:
    """Worked by hand: three devices share three devices' worth of work, whoever takes which part."""
    found = fluid_bound(problem([PAIRS], servers("mid", {E}, {D}, {V}), {E: 1.0, D: 1.0, V: 1.0}))
    assert found.capacity == pytest.approx(1.0)
    assert sum(found.counts.values()) == 3
    assert sum(found.shares.values()) <= 3 + 1e-6


def test_a_good_assignment_is_left_alone() -> None:
    first = plan(problem([PAIRS], servers("mid", *[set()] * 8), MIX))
    settled = tuple(replace(s, roles=first.assignment[s.id]) for s in first.problem.servers)
    assert plan(replace(first.problem, servers=settled)).changes == {}


def test_moves_are_the_fewest() -> None:
    result = plan(problem([PAIRS], servers("mid", *[{E}] * 4, *[{D}] * 4), {E: 1, D: 3, V: 0.001}, exclusive=True))
    assert sorted(",".join(roles) for roles in result.changes.values()) in (["decoder", "dit"], ["dit", "dit"])
    assert len(result.changes) == 2


def test_fixed_servers_stay_and_are_counted() -> None:
    members = (*servers("mid", {V}, {V}, {V}, fixed=True), *servers("small", {V}, {V}, {V}))
    result = plan(problem([PAIRS, SINGLE], members, MIX))
    assert all(result.assignment[s.id] == {V} for s in members[:3])
    assert result.capacity > 0


def test_a_server_that_holds_more_than_fits_keeps_nobody_from_moving() -> None:
    members = (*servers("mid", ALL, fixed=True), *servers("mid", *[{V}] * 5)[1:])
    result = plan(problem([PAIRS], members, MIX))
    assert set(result.changes.values()) == {frozenset({D, V})}
    assert len(result.changes) == 4


def test_no_server_is_left_without_a_role() -> None:
    result = plan(problem([FITS, PAIRS], (*servers("big", *[ALL] * 300), *servers("mid", set())), MIX))
    assert result.assignment["mid-0000"]


def test_fast_servers_take_the_stage_they_are_best_at() -> None:
    quick = server_class("quick", 28, dit=3.0)
    result = plan(problem([quick, PAIRS], (*servers("quick", {E}), *servers("mid", {D})), {E: 1, D: 3, V: 0.001}))
    assert D in result.assignment[next(s.id for s in result.problem.servers if s.cls == "quick")]


def test_a_class_that_can_hold_nothing_stays_idle() -> None:
    tiny = ServerClass("tiny", GB, {D: RoleNeed(1.0, weights_bytes=5 * GB)})
    result = plan(problem([tiny, FITS], (*servers("tiny", set()), *servers("big", set())), MIX))
    assert result.assignment["tiny-0000"] == frozenset()
    assert result.assignment["big-0000"] == ALL


def test_two_servers_that_cannot_hold_three_roles_are_named() -> None:
    single = server_class("solo", 10)
    with pytest.raises(
        Infeasible, match="encoder, dit, decoder cannot all have a holder among 2 solo able to hold decoder"
    ):
        plan(problem([single], servers("solo", set(), set()), MIX))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"demand": {}}, "demand must name roles"),
        ({"demand": {D: -1.0}}, "demand must name roles"),
        ({"demand": {D: 0.0}}, "demand is 0"),
        ({"classes": {}}, "unknown class big"),
        ({"classes": {"big": ServerClass("big", GB, {E: RoleNeed(1.0)})}}, "big-0000 holds dit"),
    ],
)
def test_impossible_problems_are_refused(fields: dict[str, object], message: str) -> None:
    good = problem([FITS], servers("big", {D}), MIX)
    with pytest.raises(ValueError, match=message):
        replace(good, **fields)


work = st.floats(0.01, 1.0)


@st.composite
def small_problems(draw: st.DrawFn, *, exclusive: bool = False) -> Problem:
    classes = [
        server_class(name, draw(st.sampled_from([29.0, 40.0, 80.0])), draw(st.sampled_from([0.3, 1.0])), dit=draw(work))
        for name in ("a", "b")
    ]
    members = []
    for cls in classes:
        held = draw(st.lists(st.sampled_from(cls.feasible_sets()), min_size=1, max_size=2))
        members += [
            replace(s, fixed=draw(st.sampled_from([True, False, False, False]))) for s in servers(cls.name, *held)
        ]
    return problem(classes, tuple(members), {E: draw(work), D: draw(work), V: draw(work)}, exclusive=exclusive)


def check_against_all_assignments(case: Problem) -> None:
    try:
        best = best_integer(case)
    except Infeasible:
        with pytest.raises(Infeasible):
            plan(case)
        return
    result = plan(case)
    held = {s.id: s for s in case.servers}
    assert result.capacity >= 0.99 * best.capacity
    assert result.bound == pytest.approx(best.capacity, rel=2e-3)
    assert all(roles == held[s].roles for s, roles in result.assignment.items() if held[s].fixed)
    assert all(case.classes[held[s].cls].fits(roles) for s, roles in result.assignment.items())
    assert set().union(*result.assignment.values()) == set(case.demand)
    assert result.assignment == plan(case).assignment


@settings(max_examples=25, derandomize=True)
@given(small_problems())
def test_plans_match_the_best_of_all_assignments(case: Problem) -> None:
    check_against_all_assignments(case)


@settings(max_examples=25, derandomize=True)
@given(small_problems(exclusive=True))
def test_exclusive_plans_match_the_best_of_all_assignments(case: Problem) -> None:
    single = tuple(replace(s, roles=frozenset([min(s.roles)])) for s in case.servers)
    check_against_all_assignments(replace(case, servers=single))


def thousand() -> Problem:
    classes = [
        server_class("a", 80),
        server_class("b", 48, 0.2),
        server_class("c", 30, 0.15),
        server_class("d", 28, 0.3),
    ]
    members = []
    for i, cls in enumerate(classes):
        sets = cls.feasible_sets()
        members += servers(cls.name, *[sets[(i + 3 * j) % len(sets)] for j in range(250)])
    return problem(classes, tuple(members), {E: 0.1, D: 1.0, V: 0.2})


def test_a_thousand_servers_get_nearly_all_that_is_possible() -> None:
    result = plan(thousand())
    assert result.capacity >= 0.99 * result.bound
