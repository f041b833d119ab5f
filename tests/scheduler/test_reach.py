"""Who cannot fetch from whom: whose fault it is, what is asked, and what becomes of the work."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler import events as ev
from scheduler.actions import Action
from scheduler.reach import GATEWAY, judge
from scheduler.trials import FIRST_RETRY, NEWCOMERS, NEWCOMERS_EVERY, SOME
from tests.scheduler.game import ALL, D, E, Game, V, failure, of, runs
from wire.types import ServerId


def fleet(**roles: str) -> Game:
    """Servers by name with their roles' letters; everybody reaches everybody."""
    game = Game()
    for name, letters in roles.items():
        game.join(name, {{"e": E, "d": D, "v": V}[letter] for letter in letters})
    settle(game)
    return game


def settle(game: Game, *unreached: tuple[str, str]) -> list[Action]:
    """Answer all trials, those that this leads to included; what else was done."""
    done: list[Action] = []
    while game.trials:
        pair = game.trials.pop(0)
        event = ev.PeerUnreached(*pair, f"tcp://{pair[1]}: silent") if pair in unreached else ev.PeerReached(*pair)
        done += game.post(event)
    return done


def everybody(game: Game, holder: str) -> list[tuple[str, str]]:
    return [(fetcher, holder) for fetcher in ("", *game.scheduler.view.servers)]


def aside(game: Game) -> dict[str, set]:
    return {server.id: set(server.aside) for server in game.scheduler.view.servers.values() if server.aside}


def blamed(game: Game, *pairs: tuple[str, str]) -> tuple[set[str], set[str]]:
    """Holders, fetchers."""
    found = judge([(ServerId(f), ServerId(h)) for f, h in pairs], game.scheduler.view.servers)
    return set(found.holders), set(found.fetchers)


# --- judgement --------------------------------------------------------------------------------------------------------


def test_a_holder_with_which_two_fail_is_at_fault() -> None:
    game = fleet(rest="ev", v2="v", d1="d", d2="d")
    assert blamed(game, ("rest", "d1"), ("v2", "d1")) == ({"d1"}, set())
    assert blamed(game, (GATEWAY, "d1"), ("v2", "d1")) == ({"d1"}, set())


def test_a_fetcher_that_fails_with_two_is_at_fault() -> None:
    game = fleet(e="e", v1="v", v2="v", d1="d", d2="d")
    assert blamed(game, ("v1", "d1"), ("v1", "d2")) == (set(), {"v1"})


def test_two_fetchers_that_are_cut_off_from_everybody() -> None:
    game = fleet(e="e", v1="v", v2="v", v3="v", d1="d", d2="d", d3="d")
    pairs = [(v, d) for v in ("v1", "v2") for d in ("d1", "d2", "d3")]
    assert blamed(game, *pairs) == (set(), {"v1", "v2"})


def test_a_dead_holder_does_not_accuse_those_who_tried_it() -> None:
    game = fleet(e="e", v1="v", d1="d", d2="d", d3="d")
    pairs = [(fetcher, holder) for fetcher in ("v1", GATEWAY) for holder in ("d1", "d2")]
    assert blamed(game, *pairs) == ({"d1", "d2"}, set())


def test_one_pair_between_two_who_can_turn_to_others_accuses_nobody() -> None:
    game = fleet(e="e", v1="v", v2="v", d1="d", d2="d")
    assert blamed(game, ("v1", "d1")) == (set(), set())


def test_one_pair_without_others_to_turn_to() -> None:
    assert blamed(fleet(e="e", d1="d", d2="d"), ("d1", "e")) == (set(), {"d1"}), "the gateway reaches e"
    assert blamed(fleet(e="e", v="v", d1="d", d2="d"), ("v", "d1")) == ({"d1"}, set()), "nobody else reads from it"
    assert blamed(fleet(all="edv"), (GATEWAY, "all")) == ({"all"}, set())


def test_a_server_that_makes_whole_pictures_alone_is_kept_rather_than_those_who_do_not_reach_it() -> None:
    game = fleet(all="edv", d1="d", d2="d")
    assert blamed(game, ("d1", "all"), ("d2", "all")) == (set(), {"d1", "d2"})
    game = fleet(all="edv", more="edv", d1="d")
    assert blamed(game, ("d1", "all"), ("more", "all")) == ({"all"}, set())


def test_a_gateway_that_is_cut_off_accuses_nobody() -> None:
    game = fleet(a="edv", b="edv", c="edv")
    assert blamed(game, (GATEWAY, "a"), (GATEWAY, "b"), (GATEWAY, "c")) == (set(), {GATEWAY})


# --- trials -----------------------------------------------------------------------------------------------------------


def test_a_newcomer_is_tried_by_those_who_will_fetch_and_tries_those_that_it_fetches_from() -> None:
    game = fleet(e="e", v="v")
    game.join("d", {D})
    assert set(game.trials) == {(GATEWAY, "d"), ("v", "d"), ("d", "e")}


def test_trials_stay_linear_in_the_number_of_servers() -> None:
    game = fleet(**{f"s{number}": "edv" for number in range(20)})
    game.join("new")
    assert len(game.trials) == 1 + 2 * SOME


def test_of_many_newcomers_only_some_are_tried_at_once_and_in_the_end_all_are() -> None:
    game, tried = Game(), list[set[str]]()
    for number in range(2 * NEWCOMERS + 5):
        game.join(f"s{number}")
    game.lose(f"s{2 * NEWCOMERS}")
    for turn in range(4):
        tried.append({holder for fetcher, holder in game.trials if fetcher == GATEWAY})
        settle(game)
        game.at((turn + 1) * NEWCOMERS_EVERY)
    assert tried == [
        {f"s{number}" for number in range(NEWCOMERS)},
        {f"s{number}" for number in range(NEWCOMERS, 2 * NEWCOMERS)},
        {f"s{number}" for number in range(2 * NEWCOMERS + 1, 2 * NEWCOMERS + 5)},
        set(),
    ]
    game.join("late")
    assert (GATEWAY, "late") in game.trials, "the rush is over"


def test_a_failed_fetch_leads_to_trials_and_not_to_a_verdict() -> None:
    game = fleet(e="e", v="v", d1="d", d2="d")
    game.now = 100.0
    game.ask("r")
    game.through("r/e")
    reader = game.where["r/d0"]
    game.failed("r/d0", "input_lost", lost=[game.handle("r/e")], unreached=True)
    other = "d2" if reader == "d1" else "d1"
    assert {(reader, "e"), (GATEWAY, "e"), (other, "e")} <= set(game.trials)
    assert not aside(game)
    settle(game)
    assert not aside(game)


def test_what_fails_is_tried_again_less_and_less_often_until_it_works() -> None:
    game = fleet(e="e", v="v")
    game.join("d", {D})
    settle(game, *everybody(game, "d"))
    times = []
    for tenths in range(1, 2000):
        game.at(tenths / 10)
        if (GATEWAY, "d") in game.trials:
            times.append(game.now)
            settle(game, *everybody(game, "d"))
    gaps = [round(b - a) for a, b in zip([0.0, *times], times, strict=False)]
    assert gaps[:5] == [5, 10, 20, 40, 60]
    assert aside(game) == {"d": ALL}
    while not game.trials:
        game.at(game.now + 1)
    actions = settle(game)
    assert [(each.server, each.roles) for each in of(do.SetAside, actions)] == [("d", frozenset())]
    assert not aside(game)


def test_one_success_has_the_others_tried_at_once() -> None:
    game = fleet(e="e", v="v")
    game.join("d", {D})
    settle(game, *everybody(game, "d"))
    game.now = 1.0
    game.post(ev.PeerReached(GATEWAY, ServerId("d")))
    game.at(1.0)
    assert game.trials == [("v", "d")]


def test_trials_that_nobody_answers_are_given_up() -> None:
    game = fleet(e="e", v="v")
    game.join("d", {D})
    game.post(ev.PeerUnreached(GATEWAY, ServerId("d"), "tcp://d: silent"))
    game.trials.clear()  # v says nothing
    assert not aside(game)
    game.at(20.0)
    assert aside(game)["d"] >= {V}


# --- what follows -----------------------------------------------------------------------------------------------------


def test_a_dead_address_is_set_aside_before_it_gets_work_and_the_reason_names_all() -> None:
    game = fleet(e="e", v="v", d1="d")
    game.join("d2", {D})
    (action,) = of(do.SetAside, settle(game, *everybody(game, "d2")))
    assert action.server == "d2"
    assert action.reason == "the gateway and v cannot fetch from it: tcp://d2: silent"
    for number in range(4):
        game.ask(f"r{number}")
        game.through(f"r{number}/e")
    assert not game.jobs_on("d2")
    assert list(game.scheduler.view.serving(game.scheduler.view.servers[ServerId("d1")].spec.model, D)) == ["d1"]


def test_work_for_a_holder_that_nobody_reaches_is_taken_from_it() -> None:
    game = fleet(e="e", v="v", d1="d", d2="d")
    game.now = 100.0
    game.ask("r")
    game.through("r/e")
    game.fetched("r/d0")
    game.started("r/d0")
    first, epoch = game.where["r/d0"], game.epochs["r/d0"]
    game.post(ev.PeerUnreached(GATEWAY, ServerId(first), "silent"))
    actions = game.post(ev.PeerUnreached(ServerId("v"), ServerId(first), "silent"))
    assert [(cancel.server, cancel.epochs) for cancel in of(do.Cancel, actions)] == [(first, (epoch,))]
    assert runs(actions) == [("r/d0", "d2" if first == "d1" else "d1")]


def test_an_output_on_a_holder_that_nobody_reaches_is_made_anew() -> None:
    game = fleet(e="e", v="v", d1="d", d2="d")
    game.now = 100.0
    game.ask("r")
    game.through("r/e", "r/d0")
    first = game.where["r/d0"]
    game.post(ev.PeerUnreached(GATEWAY, ServerId(first), "silent"))
    actions = game.post(ev.PeerUnreached(ServerId("v"), ServerId(first), "silent"))
    assert ("r/d0", "d2" if first == "d1" else "d1") in runs(actions)


def test_a_fetcher_that_is_set_aside_finishes_what_it_has_fetched() -> None:
    game = fleet(e1="e", e2="e", v="v", d1="d", d2="d")
    game.now = 100.0
    game.ask("r1")
    game.ask("r2")
    game.through("r1/e", "r2/e")
    game.fetched("r1/d0")
    first = game.where["r1/d0"]
    for holder in ("e1", "e2"):
        game.post(ev.PeerUnreached(ServerId(first), ServerId(holder), "silent"))
    assert aside(game) == {first: {D, V}}
    assert "r1/d0" in game.jobs_on(first)
    game.ask("r3")
    game.through("r3/e")
    assert game.where.get("r3/d0") != first


def test_pictures_that_the_gateway_cannot_fetch_are_decoded_elsewhere() -> None:
    game = fleet(e="e", d="d", v1="v", v2="v")
    game.now = 100.0
    game.ask("r")
    game.through("r/e", "r/d0", "r/v0")
    first = game.where["r/v0"]
    actions = game.post(ev.PeerUnreached(GATEWAY, ServerId(first), "silent"))
    assert aside(game)[first] >= {V}
    assert runs(actions) == [("r/v0", "v2" if first == "v1" else "v1")]


def test_another_server_fetches_what_one_could_not_and_nothing_is_made_anew() -> None:
    game = fleet(e="e", d="d", v1="v", v2="v")
    game.ask("r")
    game.through("r/e", "r/d0")
    first = game.where["r/v0"]
    actions = game.failed("r/v0", "input_lost", lost=[game.handle("r/d0")], unreached=True)
    assert runs(actions) == [("r/v0", "v2" if first == "v1" else "v1")]


def test_what_the_only_reader_cannot_fetch_is_made_anew_elsewhere() -> None:
    game = fleet(e="e", v="v", d1="d", d2="d")
    game.ask("r")
    game.through("r/e", "r/d0")
    first = game.where["r/d0"]
    actions = game.failed("r/v0", "input_lost", lost=[game.handle("r/d0")], unreached=True)
    assert runs(actions) == [("r/d0", "d2" if first == "d1" else "d1")]


def test_known_failing_pairs_are_kept_apart() -> None:
    game = fleet(e1="e", e2="e", v="v", d1="d", d2="d", d3="d")
    game.now = 100.0
    for holder in ("e1", "e2"):
        other = "d1" if holder == "e1" else "d2"
        game.post(ev.PeerUnreached(ServerId(other), ServerId(holder), "silent"))
    assert not aside(game)
    for number in range(6):
        name = f"r{number}"
        game.ask(name)
        game.through(f"{name}/e")
        assert (game.where[f"{name}/d0"], game.where[f"{name}/e"]) not in {("d1", "e1"), ("d2", "e2")}
        game.through(f"{name}/d0", f"{name}/v0")
        game.taken(f"{name}/v0")


def test_losses_by_unreachability_are_nobodys_failure_and_have_a_bound_of_their_own() -> None:
    game = fleet(e="e", v="v", d="d")
    game.ask("r")
    for number in range(10):
        game.through("r/e")
        ended = failure(game.failed("r/d0", "input_lost", lost=[game.handle("r/e")], unreached=True))
        assert (ended is None) == (number < 9)
    assert ended == ("r", "input_lost")


def test_a_role_change_does_not_bring_a_role_back_that_is_set_aside() -> None:
    game = fleet(e="e", v="v")
    game.join("d", {D})
    settle(game, *everybody(game, "d"))
    (order,) = of(do.AssignRoles, game.post(ev.RolesOrdered(ServerId("d"), frozenset({E, D}))))
    game.post(ev.RolesReady(ServerId("d"), order.epoch, frozenset({E, D}), 1.0))
    settle(game, *everybody(game, "d"))
    assert game.scheduler.view.servers[ServerId("d")].serving == frozenset()


@pytest.mark.parametrize("gone", ["d2", "v"])
def test_who_leaves_takes_the_accusations_along(gone: str) -> None:
    game = fleet(e="e", v="v")
    game.join("d2", {D})
    settle(game, *everybody(game, "d2"))
    game.lose(gone)
    assert not any(gone in pair for pair in game.scheduler.view.reach.failing)
    game.at(game.now + FIRST_RETRY)
    settle(game)
    assert not aside(game)


def fetch_fails(game: Game) -> str:
    """The one of the dit job; who could not fetch."""
    fetcher, lost = game.where["r/d0"], game.handle("r/e")
    game.post(ev.JobFailed(ServerId(fetcher), game.epochs["r/d0"], "input_lost", "refused", True, (lost,), (lost,)))
    return fetcher


def test_that_a_newcomer_was_reached_just_now_is_no_reason_to_wait_when_a_fetch_fails() -> None:
    game = fleet(a="ev", d1="d")
    game.ask("r")
    game.through("r/e")
    assert fetch_fails(game) == "d1"
    settle(game, ("d1", "a"))
    assert aside(game) == {"d1": {D, V}}, "before the request has used up its attempts"
    assert "r" in game.scheduler.view.live


def test_a_fetch_that_fails_right_after_such_a_trial_is_looked_into_although_nothing_follows() -> None:
    game = fleet(a="ev", d1="d")
    game.ask("r")
    game.through("r/e")
    fetch_fails(game)
    settle(game)
    game.through("r/e")
    fetcher = fetch_fails(game)
    assert not game.trials, "all were tried just now"
    game.at(game.now + FIRST_RETRY)
    settle(game, (fetcher, "a"))
    assert aside(game) == {fetcher: {D, V}}


def test_a_fetch_that_fails_while_its_trial_is_still_under_way_is_not_asked_for_for_ever() -> None:
    game = fleet(a="ev", d1="d")
    game.ask("r")
    game.through("r/e")
    fetch_fails(game)
    game.through("r/e")
    fetch_fails(game)
    game.at(game.now + FIRST_RETRY)
    alarm = game.scheduler.next_wakeup()
    assert alarm is None or alarm > game.now
