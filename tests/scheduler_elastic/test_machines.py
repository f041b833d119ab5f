"""Models that share servers are planned for together: the real solver, requests that nobody computes."""

from __future__ import annotations

from itertools import count

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.coming import Expected
from scheduler.cost.work import Target, Work
from scheduler.elastic.machines import circles
from scheduler.elastic.roles import ElasticRoles
from scheduler.roles.fitting import all_fit
from scheduler.roles.problem import Duty, RoleNeed, ServerClass
from scheduler.spec import JobSpec, RequestSpec, RoleCost, ServerSpec
from tests.scheduler.game import ALL, MODEL, D, E, V, of
from tests.scheduler_elastic.play import H100
from tests.scheduler_elastic.test_roles import Moving
from wire.types import REQUIRED, JobId, ModelKey, RequestId, Role, ServerId

OTHER, THIRD = ModelKey("other"), ModelKey("third")
GB = 10**9
ONE_MODEL = 41
"""Gigabytes, of which a model takes 39."""
NUMBERS = count()
NOTHING: frozenset[Role] = frozenset()
DIT = frozenset({D})


def member(machine: str, model: ModelKey, roles: frozenset[Role], memory_gb: int) -> ev.ServerJoined:
    capable = {
        role: RoleCost(part.weights_bytes, part.activation_bytes, part.load_seconds)
        for role, part in H100.roles.items()
    }
    target = Target.of(H100.model.name, H100.device_class, H100.precision)
    name = f"{machine}-{model}"
    memory = memory_gb * GB
    spec = ServerSpec(ServerId(name), name, model, "H100", roles, capable, memory, target=target, device=machine)
    return ev.ServerJoined(spec, dict.fromkeys(REQUIRED, 100))


class Sharing(Moving):
    def __init__(self, *, elastic_roles: bool = True) -> None:
        super().__init__()
        self.predictions: list[float] = []
        if not elastic_roles:
            self.scheduler.policies.roles = None

    def post(self, event: ev.Event) -> list[Action]:
        actions = super().post(event)
        self.predictions += [verdict.predicted_seconds for verdict in of(do.Admit, actions)]
        return actions

    def machine(self, name: str, held: ModelKey, memory_gb: int = ONE_MODEL) -> None:
        """Two servers, one for each model."""
        for model in (MODEL, OTHER):
            self.post(member(name, model, ALL if model == held else NOTHING, memory_gb))

    def ask_for(self, model: ModelKey, seconds: float, rate: float) -> None:
        for _ in range(int(seconds * rate)):
            self.at(self.now + 1 / rate)
            name = f"r{self.now:.6f}"
            encoder = JobSpec(JobId(f"{name}/e"), E, Work(E))
            dit = JobSpec(JobId(f"{name}/d0"), D, Work(D, height=1024, width=1024, steps=25), (encoder.id,))
            decoder = JobSpec(JobId(f"{name}/v0"), V, Work(V, height=1024, width=1024), (dit.id,))
            self.post(ev.RequestArrived(RequestSpec(RequestId(name), model, (encoder, dit, decoder), self.now + 1000)))

    def end_all(self) -> None:
        for request in list(self.scheduler.view.live):
            self.post(ev.RequestCancelled(request))
        for server in self.scheduler.view.servers.values():
            for attempt in list(server.attempts.values()):
                self.post(ev.JobCancelled(server.id, attempt.epoch))

    def follow(self) -> None:
        """Whatever was ordered is done, and what that leads to."""
        while self.moves:
            self.loaded(next(iter(self.moves)), 0.1)

    def held(self, model: ModelKey, roles: frozenset[Role] = ALL) -> list[str]:
        servers = self.scheduler.view.servers.values()
        return [server.spec.device for server in servers if server.spec.model == model and server.roles >= roles]


def fleet(memory_gb: int = ONE_MODEL) -> Sharing:
    game = Sharing()
    for name, model in (("a", MODEL), ("b", MODEL), ("c", OTHER)):
        game.machine(name, model, memory_gb)
    return game


def test_a_server_goes_to_the_model_that_is_asked_for() -> None:
    game = fleet()
    game.ask_for(MODEL, 30, 1.0)
    assert (game.held(MODEL), game.held(OTHER)) == (["a", "b"], ["c"])
    for _ in range(3):
        game.ask_for(OTHER, 10, 3.0)
        game.follow()
    assert len(game.held(OTHER, DIT)) == 2
    assert len(game.held(MODEL, DIT)) == 1, "the last holder stays"


def test_where_there_is_room_for_both_nobody_gives_anything_up() -> None:
    game = fleet(memory_gb=80)
    for model in (MODEL, OTHER):
        game.ask_for(model, 30, 2.0)
        game.follow()
    assert {"a", "b"} <= set(game.held(MODEL))
    assert "c" in game.held(OTHER)
    assert len(game.held(OTHER, DIT)) > 1


def test_a_model_without_a_holder_gets_one_for_its_first_request() -> None:
    game = Sharing()
    for name in "ab":
        game.machine(name, MODEL)
    game.ask_for(OTHER, 3, 1.0)
    game.follow()
    assert len(game.held(OTHER)) == len(game.held(MODEL)) == 1
    roles = game.scheduler.policies.roles
    assert isinstance(roles, ElasticRoles)
    assert list(roles.explain()) == ["model, other"]


def test_with_one_server_models_take_turns() -> None:
    game = Sharing()
    game.machine("a", MODEL)
    for model in (OTHER, MODEL, OTHER):
        game.ask_for(model, 2, 1.0)
        game.follow()
        assert game.held(model) == ["a"]
        game.end_all()
        game.at(game.now + 61)
        game.at(game.now + 1)
        assert not game.moves, "without requests nothing moves"


def test_with_one_server_a_model_that_was_just_asked_for_stays() -> None:
    game = Sharing()
    game.machine("a", MODEL)
    game.ask_for(MODEL, 2, 1.0)
    game.end_all()
    game.ask_for(OTHER, 5, 1.0)
    assert not game.moves


def test_a_model_that_nobody_asked_for_stays_where_there_is_room() -> None:
    game = Sharing()
    game.machine("a", MODEL, memory_gb=80)
    game.ask_for(OTHER, 2, 1.0)
    game.follow()
    assert game.held(MODEL) == game.held(OTHER) == ["a"]


def test_models_are_in_one_circle_where_servers_link_them() -> None:
    game = fleet()
    view = game.scheduler.view
    assert circles([OTHER, THIRD], view) == [(MODEL, OTHER), (THIRD,)]
    game.post(member("c", THIRD, NOTHING, ONE_MODEL))
    assert circles([MODEL, THIRD], view) == [(MODEL, OTHER, THIRD)]


def predicted(game: Sharing, model: ModelKey) -> float:
    """Of a request that comes now."""
    before = len(game.predictions)
    game.ask_for(model, 1, 1.0)
    return game.predictions[before]


def test_a_prediction_counts_what_the_other_model_has_on_the_same_device() -> None:
    game = Sharing(elastic_roles=False)
    game.machine("a", MODEL, memory_gb=80)
    game.post(member("b", OTHER, ALL, memory_gb=80))
    alone = predicted(game, OTHER)
    game.post(ev.ServerLost(ServerId("b-other"), "it died"))
    game.post(member("a", OTHER, ALL, memory_gb=80))
    first = predicted(game, MODEL)
    for _ in range(4):
        game.ask_for(OTHER, 1, 1.0)
    assert predicted(game, MODEL) > first + 2 * alone, "those that came before, and are no longer, go before"


def test_a_prediction_counts_the_load_of_a_model_that_nobody_holds() -> None:
    game = Sharing(elastic_roles=False)
    game.machine("a", MODEL, memory_gb=80)
    load = sum(part.load_seconds for part in H100.roles.values())
    assert predicted(game, OTHER) > predicted(game, MODEL) + 0.5 * load


def one_device(memory_gb: int = ONE_MODEL) -> Sharing:
    """It holds the one model, for which there is a request under way."""
    game = Sharing()
    game.machine("a", MODEL, memory_gb)
    game.ask_for(MODEL, 1, 1.0)
    return game


def refusal(game: Sharing, within: float = 1000.0) -> str:
    """Of a request for the other model; empty if it is admitted."""
    name = f"other {next(NUMBERS)}"
    decoding = JobSpec(JobId(f"{name}/v0"), V, Work(V, height=64, width=64))
    request = RequestSpec(RequestId(name), OTHER, (decoding,), game.now + within)
    return next((reject.reason for reject in of(do.Reject, game.post(ev.RequestArrived(request)))), "")


def test_a_model_is_refused_while_another_that_is_worked_for_needs_all_the_room() -> None:
    game = one_device()
    assert refusal(game) == (
        "no server has room for the model's encoder and dit and decoder beside the other models that are in use"
    )
    assert game.scheduler.no_room(OTHER, game.now) == refusal(game)
    assert not game.scheduler.no_room(MODEL, game.now)


def test_once_that_has_gone_out_of_use_it_is_admitted() -> None:
    game = one_device()
    game.end_all()
    assert refusal(game, within=30.0).startswith(
        "there is room for the model's encoder and dit and decoder once another"
    )
    assert refusal(game) == ""
    assert game.predictions[-1] > 60
    game.at(game.now + 61)
    assert game.scheduler.no_room(OTHER, game.now) == ""


@pytest.mark.parametrize("more", ["memory", "a machine"])
def test_a_model_for_which_others_can_make_room_is_admitted(more: str) -> None:
    game = one_device(memory_gb=80 if more == "memory" else ONE_MODEL)
    if more == "a machine":
        game.machine("b", MODEL)
    assert refusal(game) == ""


def test_servers_on_their_way_bring_room() -> None:
    class Starting:
        def expected(self, model: ModelKey, now: float) -> list[Expected]:
            return [Expected(30.0, Target("", "", ""), ALL)] if model == OTHER else []

    game = one_device()
    game.scheduler.policies.coming.follow(Starting())
    assert refusal(game) == ""


def test_where_roles_stay_as_they_are_nobody_looks_for_room() -> None:
    assert Sharing(elastic_roles=False).scheduler.no_room(MODEL, 0.0) == ""


@pytest.mark.parametrize(
    ("memories", "sizes", "fit"),
    [
        ([10], [5, 5], True),
        ([10], [5, 6], False),
        ([10, 10], [6, 6, 4, 4], True),
        ([10, 10], [6, 5, 5, 4], True),
        ([10, 10], [6, 6, 5, 3], False),
        ([10, 10], [4, 4, 3, 3, 3, 3], True),  # not with the two largest on one
        ([], [1], False),
        ([1], [], True),
    ],
)
def test_whether_stages_can_be_held_at_once(memories: list[int], sizes: list[int], fit: bool) -> None:
    stages = [Duty(ModelKey(f"m{number}"), D) for number in range(len(sizes))]
    needs = {stage: RoleNeed(1.0, size) for stage, size in zip(stages, sizes, strict=True)}
    assert all_fit(stages, [ServerClass(f"{memory} GB", memory, needs) for memory in memories]) is fit
