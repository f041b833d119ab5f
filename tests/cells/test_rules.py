"""The rules of cells: what is planned in a given situation, and that all gateways together come to rest."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gateway.cells.rules import Holds, Move, Steadiness, Why, lets_go, plan, present
from wire.to_stage import CellState, Unit
from wire.types import REQUIRED, Role

ALL = "encoder,dit,decoder"
QUIET = 10
"""Seconds without a move, longer than any has to be wanted."""


def cell(name: str, *units: str, draining: bool = False, fixed: str = "", model: str = "m") -> CellState:
    """``units``: roles of a process each; the ``fixed`` one cannot be moved."""
    told = [Unit(holds={model: roles(each)}, moves=each != fixed) for each in units]
    return CellState(name=name, gateway=f"g-{name}", draining=draining, ready=not draining, units=tuple(told))


def roles(text: str) -> tuple[Role, ...]:
    return tuple(Role(each) for each in text.split(",") if each)


def holds(text: str, model: str = "m") -> Holds:
    return frozenset((model, role) for role in roles(text))


def told(moves: list[Move]) -> list[tuple[str, str, str]]:
    texts = [",".join(role for role in REQUIRED if any(role == held for _, held in move.holds)) for move in moves]
    return [(move.source, move.target, text) for move, text in zip(moves, texts, strict=True)]


class TestPlan:
    def test_a_lone_cell_keeps_what_it_has(self) -> None:
        assert plan([cell("a", "encoder", "dit")]) == []

    def test_a_cell_that_lacks_roles_sends_its_servers_to_the_lowest_named_ready_one(self) -> None:
        cells = [cell("c", ALL), cell("b", ALL), cell("a", "dit")]
        assert told(plan(cells)) == [("a", "b", "dit")]

    def test_else_to_the_lowest_named(self) -> None:
        cells = [cell("c", "dit"), cell("b", "encoder"), cell("a", "decoder")]
        assert sorted(told(plan(cells))) == [("b", "a", "encoder"), ("c", "a", "dit")]
        assert {move.why for move in plan(cells)} == {Why.GATHER}

    def test_a_cell_is_completed_where_others_can_spare_the_roles(self) -> None:
        cells = [cell("a", *["encoder", "dit", "decoder"] * 2), cell("b")]
        moves = plan(cells)
        assert sorted(told(moves)) == [("a", "b", "decoder"), ("a", "b", "dit"), ("a", "b", "encoder")]
        assert {move.why for move in moves} == {Why.COMPLETE}

    def test_but_not_begun_where_the_roles_do_not_suffice(self) -> None:
        assert plan([cell("a", "encoder", "dit", "dit", "decoder"), cell("b")]) == []

    def test_the_last_holder_of_a_role_stays(self) -> None:
        cells = [cell("a", "encoder", "dit", "dit", "dit", "dit", "decoder"), cell("b", ALL)]
        assert told(plan(cells)) == [("a", "b", "dit"), ("a", "b", "dit")]

    def test_so_does_that_of_an_optional_one(self) -> None:
        assert plan([cell("a", "enhancer", "encoder", "dit", "decoder"), cell("b", ALL)]) == []
        moves = plan([cell("a", "enhancer", "enhancer", "encoder", "dit", "decoder"), cell("b", ALL)])
        assert [move.holds for move in moves] == [holds("enhancer")]

    def test_servers_are_spread_evenly_and_the_role_of_which_there_are_most_goes(self) -> None:
        cells = [cell("a", *["encoder"] * 2, *["dit"] * 4, *["decoder"] * 2), cell("b", "encoder", "dit", "decoder")]
        assert told(plan(cells))[0] == ("a", "b", "dit")
        assert len(plan(cells)) == 2

    def test_one_more_than_another_is_even(self) -> None:
        assert plan([cell("a", ALL, ALL), cell("b", ALL)]) == []

    def test_what_cannot_move_stays(self) -> None:
        cells = [cell("a", ALL, ALL, ALL, fixed=ALL), cell("b", ALL)]
        assert plan(cells) == []

    def test_a_draining_cell_gives_all_away_and_gets_nothing(self) -> None:
        cells = [cell("a", ALL, ALL, draining=True), cell("b", ALL, ALL), cell("c", ALL)]
        assert told(plan(cells)) == [("a", "c", ALL), ("a", "b", ALL)]

    def test_a_draining_cell_completes_the_others_first(self) -> None:
        cells = [
            cell("a", "encoder", "encoder", "dit", "dit", "decoder", "decoder", draining=True),
            cell("b"),
            cell("c"),
        ]
        for target in "bc":
            assert {text for _, to, text in told(plan(cells)) if to == target} == {"encoder", "dit", "decoder"}

    def test_if_all_end_nobody_goes_anywhere(self) -> None:
        assert plan([cell("a", ALL, draining=True), cell("b", ALL, draining=True)]) == []

    def test_those_on_their_way_count_as_arrived(self) -> None:
        going = Unit(holds={"m": REQUIRED}, going_to="b")
        source = cell("a", ALL, ALL, ALL)
        source = CellState(name="a", gateway="g", units=(*source.units, going))
        assert plan([source, cell("b", ALL)]) == []
        assert present(source) == {holds(ALL): 3}

    def test_models_are_spread_each_by_itself(self) -> None:
        first, second = cell("a", ALL, ALL), cell("a", ALL, model="n")
        both = CellState(name="a", gateway="g", units=first.units + second.units)
        assert told(plan([both, cell("b")])) == [("a", "b", ALL)]

    def test_a_process_of_several_models_stays_where_one_of_them_needs_it(self) -> None:
        shared = holds(ALL) | holds(ALL, "n")
        assert not lets_go(Counter({shared: 1, holds(ALL): 1}), shared)
        assert lets_go(Counter({shared: 2}), shared)


class TestSteadiness:
    def test_a_move_is_made_once_it_was_wanted_for_long_enough(self) -> None:
        steady, move = Steadiness(), Move("a", "b", holds(ALL), Why.SPREAD)
        assert steady.due([move], 0) == []
        assert steady.due([move], 2.9) == []
        assert steady.due([move], 3) == [move]
        steady.acted(move, 3)
        assert steady.due([move], 5) == []
        assert steady.due([], 6) == []
        assert steady.due([move], 7) == [], "wanted anew"

    def test_at_the_end_nobody_waits(self) -> None:
        move = Move("a", "b", holds(ALL), Why.EVACUATE)
        assert Steadiness().due([move], 0) == [move]


class Game:
    """Gateways that hear of each other a second late and whose servers take a while to move."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        kinds = self.chance.choice([[ALL], ["encoder", "dit", "decoder"], ["encoder,decoder", "dit", ALL]])
        self.names = [f"cell-{number}" for number in range(self.chance.randint(2, 5))]
        self.present: dict[str, Counter[Holds]] = {name: Counter() for name in self.names}
        for _ in range(self.chance.randint(3, 40)):
            self.present[self.chance.choice(self.names)][holds(self.chance.choice(kinds))] += 1
        self.going: list[tuple[float, Move]] = []
        self.told = {name: self.state(name) for name in self.names}
        self.steady = {name: Steadiness() for name in self.names}
        self.now = 0.0
        self.moves = 0

    def state(self, name: str) -> CellState:
        here = [Unit(holds=by_model(each), count=n, moves=True) for each, n in (+self.present[name]).items()]
        away = [Unit(holds=by_model(m.holds), going_to=m.target) for _, m in self.going if m.source == name]
        return CellState(name=name, gateway=name, ready=is_complete(self.present[name]), units=(*here, *away))

    def second(self) -> None:
        self.now += 1
        before = {name: self.state(name) for name in self.names}
        for name in self.chance.sample(self.names, len(self.names)):
            cells = [self.state(name), *(state for other, state in self.told.items() if other != name)]
            wanted = [move for move in plan(cells) if move.source == name]
            for move in self.steady[name].due(wanted, self.now):
                if lets_go(self.present[name], move.holds):
                    was_complete = is_complete(self.present[name])
                    self.present[name] -= Counter([move.holds])
                    assert is_complete(self.present[name]) or not was_complete
                    self.going.append((self.now + self.chance.randint(0, 4), move))
                    self.steady[name].acted(move, self.now)
                    self.moves += 1
        self.told = before
        for due, move in [each for each in self.going if each[0] <= self.now]:
            self.going.remove((due, move))
            self.present[move.target][move.holds] += 1


def by_model(held: Holds) -> dict[str, tuple[Role, ...]]:
    return {"m": tuple(role for role in REQUIRED if ("m", role) in held)}


def is_complete(held: Counter[Holds]) -> bool:
    return all(any(("m", role) in each for each in +held) for role in REQUIRED)


@pytest.mark.parametrize("seed", range(15))
def test_gateways_come_to_rest_and_break_no_complete_cell(seed: int) -> None:
    game = Game(seed)
    total = sum(game.present.values(), Counter())
    settled, quiet = 0, 0
    while quiet < QUIET:
        game.second()
        quiet = quiet + 1 if game.moves == settled and not game.going else 0
        settled = game.moves
        assert game.now < 200, "nobody flaps"
    assert sum(game.present.values(), Counter()) == total
    assert plan([game.state(name) for name in game.names]) == []
    assert settled <= 2 * total.total() + 2 * len(game.names), "few servers move twice"
    if is_complete(total):
        assert any(is_complete(held) for held in game.present.values())
        strays = [name for name, held in game.present.items() if +held and not is_complete(held)]
        assert strays == []
    if set(total) == {holds(ALL)}:
        sizes = [held.total() for held in game.present.values()]
        assert max(sizes) - min(sizes) <= 1
