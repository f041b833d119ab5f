"""When two mixes count as alternating, and when roles for both are had."""

from __future__ import annotations

from scheduler.roles.alternation import CARRIED, EXCEEDED, MEMORY_SECONDS, Alternation
from tests.scheduler_roles.builders import D, E, V

DRAW = {E: 0.5, D: 4.0, V: 1.0}
EDIT = {E: 2.0, D: 2.0, V: 1.0}
BOTH = {E: 2.0, D: 4.0, V: 1.0}


def alternating() -> Alternation:
    found = Alternation()
    found.moved(DRAW, 0.0)
    found.moved(EDIT, 60.0)
    return found


def test_a_shift_is_no_alternation() -> None:
    found = Alternation()
    assert found.planned(DRAW, 0.0) is None
    found.moved(DRAW, 0.0)
    assert found.planned(EDIT, 60.0) is None
    found.moved(EDIT, 60.0)
    assert found.planned(EDIT, 70.0) is None
    found.moved({**EDIT, E: 2.1}, 75.0)  # the rest of the servers follow
    assert found.planned({**EDIT, V: 3.0}, 130.0) is None  # a third mix


def test_a_mix_that_is_back_is_planned_for_together_with_the_one_it_replaces() -> None:
    assert alternating().planned(DRAW, 120.0) == BOTH


def test_after_a_while_a_mix_that_is_back_is_new() -> None:
    assert alternating().planned(DRAW, 61.0 + MEMORY_SECONDS) is None


def test_roles_that_carry_both_are_planned_for_while_neither_asks_for_much_more() -> None:
    found = alternating()
    both = found.planned(DRAW, 120.0)
    assert both is not None
    assert found.is_carried(both, 1.01 / CARRIED, 120.0)
    assert found.planned(EDIT, 180.0) == both
    more = 1.01 * EXCEEDED * DRAW[D]
    assert found.planned({**DRAW, D: more}, 240.0) == {**BOTH, D: more}  # to be judged anew


def test_roles_that_would_be_too_busy_with_both_are_not_had_and_the_mixes_are_followed() -> None:
    found = alternating()
    both = found.planned(DRAW, 120.0)
    assert both is not None
    assert not found.is_carried(both, 0.99 / CARRIED, 120.0)
    assert found.planned(DRAW, 121.0) is None


def test_it_lasts_while_they_take_turns_and_ends_once_one_stays() -> None:
    found = alternating()
    both = found.planned(DRAW, 120.0)
    assert both is not None
    assert found.is_carried(both, 2.0, 120.0)
    for half in range(10):
        assert found.planned((EDIT, DRAW)[half % 2], 180.0 + 60 * half) == both
    assert found.planned(DRAW, 720.0 + MEMORY_SECONDS - 1) == both
    assert found.planned(DRAW, 721.0 + MEMORY_SECONDS) is None
