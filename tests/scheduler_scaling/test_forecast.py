"""What the forecast makes of arrivals."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.scaling.forecast import Forecast


def _fed(
    seconds: float,
    rate: float,
    forecast: Forecast | None = None,
    since: float = 0.0,
    seed: int = 1,
    work: float = 10.0,
) -> Forecast:
    """Poisson arrivals of ``work`` seconds each."""
    forecast, chance = forecast or Forecast(since), Random(seed)
    at = since
    while (at := at + chance.expovariate(rate / work)) < since + seconds:
        forecast.arrived(work, at)
    forecast.advance(since + seconds)
    return forecast


def test_a_steady_rate_is_found() -> None:
    assert _fed(1800.0, 5.0).rate(120.0) == pytest.approx(5.0, rel=0.25)


def test_the_farther_ahead_the_less_is_known() -> None:
    forecast = _fed(1800.0, 5.0)
    assert forecast.rate(300.0, 1.0) - forecast.rate(300.0) > forecast.rate(0.0, 1.0) - forecast.rate(0.0)


def test_a_jump_is_followed_within_a_minute() -> None:
    forecast = _fed(1800.0, 3.0)
    assert _fed(60.0, 12.0, forecast, 1800.0).rate(0.0) > 7.0


def test_a_jump_that_chance_blurs_is_still_seen_as_one() -> None:
    """Few large requests: what the filter makes of the first of them must not hide the others."""
    for seed in range(20):
        forecast = _fed(1800.0, 3.0, seed=seed, work=25.0)
        _fed(150.0, 12.0, forecast, 1800.0, seed + 100, work=25.0)
        assert forecast.jumped_at > 1800.0, seed


def test_chance_alone_is_seldom_a_jump() -> None:
    jumped = [_fed(3600.0, 3.0, seed=seed, work=25.0).jumped_at > 0.0 for seed in range(20)]
    assert sum(jumped) <= 4  # in twenty hours


def test_what_is_assumed_before_anything_came_is_soon_outweighed() -> None:
    forecasts = [_fed(90.0, 3.0, seed=seed).rate(0.0) for seed in range(20)]
    assert sum(forecasts) / len(forecasts) > 2.0


def test_silence_is_believed() -> None:
    forecast = _fed(1800.0, 5.0)
    forecast.advance(2100.0)
    assert forecast.rate(0.0) < 0.5


def test_a_trend_goes_on_for_a_while() -> None:
    forecast = Forecast(0.0)
    for minute in range(40):
        _fed(60.0, 2.0 + 0.2 * minute, forecast, 60.0 * minute, seed=minute)
    assert forecast.rate(180.0) > forecast.rate(0.0) + 0.2


def test_nothing_is_expected_before_anything_came() -> None:
    forecast = Forecast(0.0)
    forecast.advance(1000.0)
    assert forecast.rate(100.0, 2.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 1000)), max_size=60), st.floats(0, 1000))
def test_a_rate_is_a_number_of_zero_or_more(arrivals: list[tuple[float, float]], ahead: float) -> None:
    forecast, at = Forecast(0.0), 0.0
    for gap, work in arrivals:
        at += gap
        forecast.arrived(work, at)
    assert 0.0 <= forecast.rate(ahead) <= forecast.rate(ahead, 1.0) < 1e9
