"""Servers of several models on one device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.cost.work import Target, Work
from scheduler.policy import Policies
from scheduler.spec import JobSpec, RequestSpec, RoleCost, ServerSpec
from tests.scheduler.game import ALL, MODEL, D, E, Game, V, of, runs
from tests.scheduler.test_roles import SOME_PLAN, Wishes
from tests.simulation.schedules import Together
from wire.types import REQUIRED, JobId, ModelKey, RequestId, Role, ServerId

OTHER = ModelKey("other")
GB = 10**9


def shared(
    name: str,
    model: ModelKey,
    roles: frozenset[Role] = ALL,
    device: str = "gpu",
    *,
    memory_gb: int = 0,
    size_gb: int = 1,
) -> ev.ServerJoined:
    spec = ServerSpec(
        ServerId(name),
        name,
        model,
        "gpu",
        roles,
        dict.fromkeys(REQUIRED, RoleCost(weight_bytes=size_gb * GB)),
        memory_bytes=memory_gb * GB,
        target=Target(model, "gpu", "bfloat16"),
        device=device,
    )
    return ev.ServerJoined(spec, dict.fromkeys(REQUIRED, 100))


def sized(
    name: str, model: ModelKey, roles: Iterable[Role], sizes: Mapping[Role, int], memory_gb: int
) -> ev.ServerJoined:
    joined = shared(name, model, frozenset(roles), memory_gb=memory_gb)
    capable = {role: RoleCost(weight_bytes=size * GB) for role, size in sizes.items()}
    return ev.ServerJoined(replace(joined.server, capable=capable), joined.limits)


def request(name: str, model: ModelKey) -> ev.RequestArrived:
    encoder = JobSpec(JobId(f"{name}/e"), E, Work(E))
    dit = JobSpec(JobId(f"{name}/d0"), D, Work(D, height=64, width=64, steps=20), (encoder.id,))
    decoder = JobSpec(JobId(f"{name}/v0"), V, Work(V, height=64, width=64), (dit.id,))
    return ev.RequestArrived(RequestSpec(RequestId(name), model, (encoder, dit, decoder), 1000.0))


def test_a_device_has_as_many_jobs_as_one_server() -> None:
    game = Game(Policies())
    for name, model in (("a", MODEL), ("b", OTHER)):
        game.post(shared(name, model))
    assert runs(game.post(request("one", MODEL))) == [("one/e", "a")]
    assert runs(game.post(request("two", OTHER))) == [("two/e", "b")], "the second slot, to fetch meanwhile"
    assert runs(game.post(request("three", MODEL))) == []
    assert runs(game.post(request("four", OTHER))) == []
    assert len(runs(game.through("one/e"))) == 1


def test_servers_with_devices_of_their_own_serve_both_models_at_once() -> None:
    game = Game(Policies())
    game.post(shared("a", MODEL, device="x"))
    game.post(shared("b", OTHER, device="y"))
    assert runs(game.post(request("one", MODEL))) == [("one/e", "a")]
    assert runs(game.post(request("two", OTHER))) == [("two/e", "b")]


def test_everything_of_both_models_is_served() -> None:
    game = Game(Policies())
    for name, model in (("a", MODEL), ("b", OTHER)):
        game.post(shared(name, model))
    for name, model in (("one", MODEL), ("two", OTHER), ("three", OTHER)):
        game.post(request(name, model))
    done: set[str] = set()
    while len(done) < 9:
        game.now += 10.0
        game.at(game.now)
        open_jobs = sorted(set(game.epochs) - done)
        assert open_jobs, "nothing is on the device, and jobs wait"
        for job in open_jobs:
            game.through(job)
            done.add(job)
    assert {job: game.where[job] for job in done if job.endswith("d0")} == {
        "one/d0": "a",
        "two/d0": "b",
        "three/d0": "b",
    }


def test_a_server_that_is_lost_leaves_its_device_to_the_others() -> None:
    game = Game(Policies())
    for name, model in (("a", MODEL), ("b", OTHER)):
        game.post(shared(name, model))
    game.post(request("one", MODEL))
    game.post(request("two", OTHER))
    game.post(request("three", OTHER))
    assert runs(game.lose("a")) == [("three/e", "b")]
    assert not game.scheduler.view.servers[ServerId("b")].sharers[1:]


def orders(actions: list[do.Action]) -> list[tuple[str, frozenset[Role]]]:
    return [(order.server, order.roles) for order in of(do.AssignRoles, actions)]


def test_what_comes_waits_for_what_goes_where_the_device_has_no_room_for_both() -> None:
    game = Game(Policies())
    game.post(shared("spare", MODEL, device=""))
    game.post(shared("a", MODEL, memory_gb=4))
    game.post(shared("b", OTHER, frozenset(), memory_gb=4))
    assert orders(game.post(ev.RolesOrdered(ServerId("a"), frozenset()))) == [("a", frozenset())]
    assert orders(game.post(ev.RolesOrdered(ServerId("b"), ALL))) == []
    epoch = game.scheduler.view.servers[ServerId("a")].switching
    assert epoch is not None
    after = game.post(ev.RolesReady(ServerId("a"), epoch[0], frozenset(), 0.1))
    assert orders(after) == [("b", ALL)]


def test_what_comes_is_forgotten_where_nothing_goes_after_all() -> None:
    game = Game(Policies())
    game.post(shared("spare", MODEL, device=""))
    game.post(shared("a", MODEL, memory_gb=4))
    game.post(shared("b", OTHER, frozenset(), memory_gb=4))
    game.post(ev.RolesOrdered(ServerId("a"), frozenset()))
    game.post(ev.RolesOrdered(ServerId("b"), ALL))
    epoch = game.scheduler.view.servers[ServerId("a")].switching
    assert epoch is not None
    assert orders(game.post(ev.RolesFailed(ServerId("a"), epoch[0], ALL, "its device hangs"))) == []
    assert game.scheduler.view.servers[ServerId("b")].switching is None


def test_what_comes_does_not_wait_where_there_is_room_for_both() -> None:
    game = Game(Policies())
    game.post(shared("a", MODEL, memory_gb=6))
    game.post(shared("b", OTHER, frozenset(), memory_gb=6))
    game.post(ev.RolesOrdered(ServerId("a"), frozenset({E, D})))
    assert orders(game.post(ev.RolesOrdered(ServerId("b"), ALL))) == [("b", ALL)]


def test_a_newer_order_that_waits_for_room_is_not_undone_by_the_answer_to_an_older_one() -> None:
    game = Game(Policies())
    game.post(shared("spare", MODEL, device=""))
    game.post(shared("a", MODEL, memory_gb=5))
    game.post(shared("b", OTHER, frozenset({E}), memory_gb=5))
    (older,) = of(do.AssignRoles, game.post(ev.RolesOrdered(ServerId("b"), frozenset({V}))))
    (going,) = of(do.AssignRoles, game.post(ev.RolesOrdered(ServerId("a"), frozenset({E}))))
    assert orders(game.post(ev.RolesOrdered(ServerId("b"), ALL))) == []
    b = game.scheduler.view.servers[ServerId("b")]
    assert orders(game.post(ev.RolesReady(ServerId("b"), older.epoch, frozenset({V}), 0.1))) == []
    assert b.switching is not None
    assert b.serving == {V}, "what it holds meanwhile"
    assert orders(game.post(ev.RolesReady(ServerId("a"), going.epoch, frozenset({E}), 0.1))) == [("b", ALL)]


def test_an_older_order_under_way_does_not_send_a_newer_one_that_has_no_room() -> None:
    game = Game(Policies())
    game.post(shared("spare", MODEL, device=""))
    game.post(shared("a", MODEL, memory_gb=4))
    game.post(shared("b", OTHER, frozenset({E}), memory_gb=4))
    (older,) = of(do.AssignRoles, game.post(ev.RolesOrdered(ServerId("b"), frozenset({V}))))
    (going,) = of(do.AssignRoles, game.post(ev.RolesOrdered(ServerId("a"), frozenset({E, D}))))
    assert orders(game.post(ev.RolesOrdered(ServerId("b"), frozenset({E, D})))) == []
    assert orders(game.post(ev.RolesReady(ServerId("b"), older.epoch, frozenset({V}), 0.1))) == []
    answer = ev.RolesReady(ServerId("a"), going.epoch, frozenset({E, D}), 0.1)
    assert orders(game.post(answer)) == [("b", frozenset({E, D}))]


def test_of_two_that_swap_a_role_the_one_that_finds_room_goes_first() -> None:
    """The larger one would not fit beside what the other still has."""
    game = Game(Policies(roles=Wishes(("a", {D}), ("b", {E}))))
    game.post(shared("spare", MODEL, device=""))
    game.post(shared("other spare", OTHER, device=""))
    game.post(sized("a", MODEL, {E}, {E: 10, D: 14}, 24))
    game.post(sized("b", OTHER, {D}, {E: 10, D: 14}, 24))
    (first,) = of(do.AssignRoles, game.post(ev.PlanReady(SOME_PLAN)))
    assert (first.server, first.roles) == ("b", {E})
    assert game.scheduler.view.servers[ServerId("a")].serving == {E}, "until there is room"
    assert orders(game.post(ev.RolesReady(ServerId("b"), first.epoch, frozenset({E}), 0.1))) == [("a", {D})]


def test_what_both_have_in_common_takes_room_once() -> None:
    game = Game(Policies())
    for name, model in (("a", MODEL), ("b", OTHER)):
        joined = sized(name, model, {E} if name == "a" else (), {E: 10}, 12)
        encoder = RoleCost(weight_bytes=10 * GB, common_bytes={"a text encoder": 8 * GB})
        game.post(ev.ServerJoined(replace(joined.server, capable={E: encoder}), joined.limits))
    (order,) = of(do.AssignRoles, game.post(ev.RolesOrdered(ServerId("b"), frozenset({E}))))
    held = game.scheduler.view.servers[ServerId("a")].roles
    assert (order.server, order.roles, held) == ("b", {E}, {E})


def test_what_will_never_fit_is_left_to_the_server_to_refuse() -> None:
    game = Game(Policies())
    game.post(shared("a", MODEL, memory_gb=4))
    game.post(shared("b", OTHER, frozenset({E}), memory_gb=4))
    assert orders(game.post(ev.RolesOrdered(ServerId("b"), ALL))) == [("b", ALL)]


@pytest.mark.parametrize("seed", range(60))
def test_every_change_that_fits_in_the_end_is_made(seed: int) -> None:
    """Two to four models on one full device. Whoever is told to hold what does not fit beside the others refuses."""
    rng = Random(seed)
    names = [f"s{number}" for number in range(rng.randint(2, 4))]
    sizes = {name: {role: rng.randint(1, 9) for role in REQUIRED} for name in names}
    subsets = [frozenset(role for index, role in enumerate(REQUIRED) if number >> index & 1) for number in range(8)]
    before, after = ({name: rng.choice(subsets) for name in names} for _ in range(2))
    needed = (sum(sizes[name][role] for name in names for role in held[name]) for held in (before, after))
    memory = max(1, *needed)
    moves = ((name, set(roles)) for name, roles in after.items() if roles != before[name])
    game = Game(Policies(roles=Wishes(*moves)))
    for name in names:
        game.post(shared(f"spare of {name}", ModelKey(name), device=""))
        game.post(sized(name, ModelKey(name), before[name], sizes[name], memory))
    held, told = dict(before), of(do.AssignRoles, game.post(ev.PlanReady(SOME_PLAN)))
    while told:
        order = told.pop(rng.randrange(len(told)))
        wished = held | {order.server: order.roles}
        assert sum(sizes[name][role] for name in names for role in wished[name]) <= memory
        held = wished
        told += of(do.AssignRoles, game.post(ev.RolesReady(order.server, order.epoch, order.roles, 0.1)))
    assert held == after


# --- those that compute together --------------------------------------------------------------------------------------


def joint(name: str, model: ModelKey, roles: frozenset[Role] = ALL, device: str = "gpu") -> ev.ServerJoined:
    joined = shared(name, model, roles, device)
    several = dict.fromkeys(REQUIRED, RoleCost(together=4))
    return ev.ServerJoined(replace(joined.server, capable=several), joined.limits)


def fast(name: str, model: ModelKey) -> ev.RequestArrived:
    return ev.RequestArrived(replace(request(name, model).request, exact=False))


def two_models() -> Game:
    """On one device, beside an encoder server that has one of its own."""
    game = Game(Policies(batching=Together()))
    game.post(joint("a", MODEL, frozenset({D, V})))
    game.post(joint("b", OTHER))
    game.post(joint("encoder", MODEL, frozenset({E}), device=""))
    return game


def test_nobody_joins_a_group_while_an_older_job_of_the_other_model_waits_for_its_device() -> None:
    game = two_models()
    game.post(fast("one", MODEL))
    game.through("one/e")
    game.fetched("one/d0")
    game.started("one/d0")
    assert runs(game.post(fast("older", OTHER))) == [], "the device computes for longer than a fetch takes"
    game.post(fast("younger", MODEL))
    assert runs(game.through("younger/e")) == []
    assert runs(game.done("one/d0"))[:1] == [("one/v0", "a")]


def test_a_job_joins_once_the_other_model_has_left_the_device() -> None:
    game = two_models()
    game.post(fast("other", OTHER))
    game.fetched("other/e")
    game.started("other/e")
    game.post(fast("one", MODEL))
    assert runs(game.through("one/e")) == [("one/d0", "a")], "into the second slot"
    game.post(fast("two", MODEL))
    assert runs(game.through("two/e")) == []
    game.post(ev.RequestCancelled(RequestId("other")))
    assert runs(game.cancelled("other/e")) == [("two/d0", "a")]


def test_a_job_joins_once_the_other_model_s_server_is_gone() -> None:
    game = two_models()
    game.post(fast("other", OTHER))
    game.fetched("other/e")
    game.started("other/e")
    game.post(fast("one", MODEL))
    game.through("one/e")
    game.post(fast("two", MODEL))
    assert runs(game.through("two/e")) == []
    assert runs(game.lose("b")) == [("two/d0", "a")]
