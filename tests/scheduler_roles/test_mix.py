from __future__ import annotations

import random

import pytest

from scheduler.roles.mix import KINDS, ArrivalMix
from tests.scheduler_roles.builders import D, E, V
from wire.types import Role

DRAW = {E: 0.4, D: 15.0, V: 1.0}
EDIT = {E: 8.0, D: 7.5, V: 1.0}
FOUR, ONE = {E: 0.4, D: 7.5, V: 1.0}, {E: 0.4, D: 1.9, V: 1.0}


def fed(mix: ArrivalMix, *works: dict[Role, float]) -> ArrivalMix:
    for work in works:
        mix.add(work)
    return mix


def test_nothing_is_known_before_the_first_arrival() -> None:
    assert ArrivalMix().means() == {E: 0.0, D: 0.0, V: 0.0}
    assert ArrivalMix().doubt() == {E: 0.0, D: 0.0, V: 0.0}


def test_equal_requests_leave_no_doubt() -> None:
    mix = fed(ArrivalMix(), *[DRAW] * 50)
    assert mix.means() == pytest.approx(DRAW)
    assert mix.doubt() == pytest.approx({E: 0.0, D: 0.0, V: 0.0}, abs=1e-6)


def test_when_it_is_asked_changes_nothing() -> None:
    seldom, often = ArrivalMix(), ArrivalMix()
    chance = random.Random(3)
    for _ in range(333):
        work = chance.choice((DRAW, EDIT, FOUR))
        seldom.add(work)
        often.add(work)
        often.means()
    assert (seldom.means(), seldom.doubt()) == (often.means(), often.doubt())


def test_one_stranger_is_doubted_two_in_a_row_are_believed() -> None:
    mix = fed(ArrivalMix(), *[DRAW] * 200, EDIT)
    after_one = mix.means()[E], mix.doubt()[E]
    fed(mix, EDIT)
    after_two = mix.means()[E], mix.doubt()[E]
    assert after_one[0] < 0.5 * EDIT[E] < 0.75 * EDIT[E] < after_two[0]
    assert after_one[1] > 0.5 > after_two[1]


def test_a_rare_kind_that_comes_back_changes_little() -> None:
    mix = fed(ArrivalMix(), *([FOUR] * 19 + [ONE]) * 10)
    before = mix.means()[D]
    assert fed(mix, ONE).means()[D] == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_mixture_that_loses_a_kind_is_followed_within_twenty_arrivals(seed: int) -> None:
    draw = random.Random(seed)
    mix = fed(ArrivalMix(), *(draw.choice((FOUR, ONE)) for _ in range(300)))
    assert fed(mix, *[ONE] * 20).means()[D] == pytest.approx(ONE[D], rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_steady_mixture_is_held_still_and_its_doubt_is_about_right(seed: int) -> None:
    draw = random.Random(seed)
    sizes = (1.7, 5.0, 10.0, 42.0)
    works = [{E: 0.5, D: dit, V: 0.07 * dit} for dit in draw.choices(sizes, (15, 25, 45, 15), k=3000)]
    true = 0.15 * 1.7 + 0.25 * 5.0 + 0.45 * 10.0 + 0.15 * 42.0
    mix, far = ArrivalMix(), 0
    for number, work in enumerate(works):
        mix.add(work)
        share = mix.means()[E] / (mix.means()[E] + 1.07 * mix.means()[D])
        error = abs(share / (0.5 / (0.5 + 1.07 * true)) - 1)
        far += number > 100 and error > 3 * mix.doubt()[E]
    assert far < 0.03 * len(works)


def test_requests_that_differ_in_size_only_leave_the_proportions_alone() -> None:
    draw = random.Random(1)
    works = [{E: 0.1 * size, D: size, V: 0.05 * size} for size in draw.choices((1.0, 4.0, 16.0), k=40)]
    assert fed(ArrivalMix(), *works).doubt() == pytest.approx({E: 0.0, D: 0.0, V: 0.0}, abs=1e-6)


def test_any_number_of_kinds_is_taken_in() -> None:
    draw = random.Random(1)
    works = [{E: draw.uniform(0.1, 9), D: draw.uniform(0.1, 90), V: draw.uniform(0.1, 9)} for _ in range(12 * KINDS)]
    mean = fed(ArrivalMix(), *works).means()
    assert mean[D] == pytest.approx(45.0, rel=0.3)
    assert mean[E] == pytest.approx(4.5, rel=0.3)


def test_a_slow_drift_within_a_kind_is_followed() -> None:
    mix = fed(ArrivalMix(), *[{D: 10.0}] * 50)
    assert fed(mix, *[{D: 10.5}] * 200).means()[D] == pytest.approx(10.5, rel=0.01)
