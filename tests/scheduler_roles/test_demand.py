from __future__ import annotations

import random

import pytest

from scheduler.roles.demand import AdaptiveMean, DemandEstimator
from tests.scheduler_roles.builders import D, E, V


def feed(estimator: DemandEstimator, work: dict, start: float, gap: float, count: int) -> float:
    for _ in range(count):
        start += gap
        estimator.arrived(work, start)
    return start


def test_demand_is_rate_times_work() -> None:
    estimator = DemandEstimator()
    now = feed(estimator, {E: 1.0, D: 18.0, V: 2.0}, 0.0, 0.5, 100)
    assert estimator.rate(now) == pytest.approx(2.0)
    assert estimator.demand(now) == pytest.approx({E: 2.0, D: 36.0, V: 4.0})


def test_backlog_counts_over_its_horizon() -> None:
    estimator = DemandEstimator(backlog_horizon=30.0)
    assert estimator.demand(5.0, {D: 60.0}) == {E: 0.0, D: 2.0, V: 0.0}


def test_a_step_in_the_mix_is_followed_within_a_few_arrivals() -> None:
    estimator = DemandEstimator()
    now = feed(estimator, {D: 74.0, V: 9.0}, 0.0, 1.0, 300)
    now = feed(estimator, {D: 18.0, V: 9.0}, now, 1.0, 5)
    assert estimator.demand(now) == pytest.approx({E: 0.0, D: 18.0, V: 9.0}, rel=0.15)
    assert estimator.doubt()[D] < 0.1


def test_a_step_in_the_rate_is_followed_and_leaves_the_mix_alone() -> None:
    estimator = DemandEstimator()
    now = feed(estimator, {D: 4.0, V: 1.0}, 0.0, 2.0, 100)
    now = feed(estimator, {D: 4.0, V: 1.0}, now, 0.2, 20)
    demand = estimator.demand(now)
    assert demand[D] == pytest.approx(20.0)
    assert demand[D] / demand[V] == pytest.approx(4.0)


def test_the_rate_falls_in_silence() -> None:
    estimator = DemandEstimator()
    now = feed(estimator, {D: 1.0}, 0.0, 1.0, 50)
    assert estimator.rate(now + 4) == pytest.approx(1.0)
    assert estimator.rate(now + 50) == pytest.approx(0.1)


def test_two_quick_arrivals_are_no_flood() -> None:
    estimator = DemandEstimator()
    feed(estimator, {D: 1.0}, 0.0, 0.001, 2)
    assert estimator.rate(0.01) < 1.0
    assert DemandEstimator().rate(1.0) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_steady_gaps_rarely_look_like_a_change(seed: int) -> None:
    draw = random.Random(seed)
    mean = AdaptiveMean(256)
    forgotten = 0
    for _ in range(3000):
        mean.add(draw.expovariate(1.0))
        before = len(mean)
        mean.mean()
        forgotten += len(mean) < before
    assert forgotten <= 5


def test_the_horizon_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0 s, not 0"):
        DemandEstimator(backlog_horizon=0.0)
