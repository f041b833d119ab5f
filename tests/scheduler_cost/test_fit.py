"""The form c + a·N + b·N² against the published tables of calibration.md."""

from __future__ import annotations

import pytest

from scheduler.cost.features import Row
from scheduler.cost.fit import StageFit

FLUX_L20 = {256: 0.1086, 512: 0.2217, 1024: 0.840, 2048: 4.67, 3072: 15.5, 4096: 39.8}
SD3_L20 = {128: 0.0220, 256: 0.0297, 512: 0.0592, 1024: 0.2427, 1536: 0.5952}
VAGUE = (0.03, 5e-5, 2e-9)


def row(side: int) -> Row:
    tokens = (side / 16) ** 2
    return (1.0, tokens, tokens**2)


def fitted(table: dict[int, float], repeats: int = 30) -> StageFit:
    fit = StageFit(VAGUE, tuple(row(side) for side in (256, 1024)), level_weight=0.05)
    for _ in range(repeats):
        for side, seconds in table.items():
            fit.observe(row(side), seconds)
    fit.refit_if_due()
    return fit


def form_errors(table: dict[int, float]) -> list[float]:
    coefficients = fitted(table).coefficients
    estimates = {side: sum(x * c for x, c in zip(row(side), coefficients, strict=True)) for side in table}
    return [abs(estimates[side] / seconds - 1) for side, seconds in table.items()]


@pytest.mark.parametrize(("table", "mean", "largest"), [(FLUX_L20, 0.025, 0.052), (SD3_L20, 0.033, 0.073)])
def test_the_form_fits_the_published_tables(table: dict[int, float], mean: float, largest: float) -> None:
    errors = form_errors(table)
    assert sum(errors) / len(errors) == pytest.approx(mean, abs=0.002)
    assert max(errors) <= largest


@pytest.mark.parametrize("table", [FLUX_L20, SD3_L20])
def test_the_local_correction_removes_most_of_the_misfit_at_sizes_that_were_seen(table: dict[int, float]) -> None:
    fit = fitted(table)
    errors = [abs(fit.seconds(row(side)) / seconds - 1) for side, seconds in table.items()]
    assert sum(errors) / len(errors) < 0.015


def test_sizes_left_out_inside_the_range_are_met_within_five_per_cent_on_average() -> None:
    errors = []
    for left_out in (512, 1024, 2048, 3072):
        rest = {side: seconds for side, seconds in FLUX_L20.items() if side != left_out}
        errors.append(abs(fitted(rest).seconds(row(left_out)) / FLUX_L20[left_out] - 1))
    assert sum(errors) / len(errors) < 0.05


def test_a_single_observation_sets_the_level_and_keeps_the_shape() -> None:
    fit = StageFit(VAGUE, tuple(row(side) for side in (256, 1024)), level_weight=0.05)
    before = fit.seconds(row(512)) / fit.seconds(row(1024))
    fit.observe(row(1024), 10 * fit.seconds(row(1024)))
    fit.refit_if_due()
    assert fit.level == pytest.approx(10, rel=0.15)
    assert fit.seconds(row(512)) / fit.seconds(row(1024)) == pytest.approx(before, rel=0.05)


def test_a_flood_of_one_size_does_not_push_out_the_others() -> None:
    fit = fitted(FLUX_L20, repeats=5)
    for _ in range(1000):
        fit.observe(row(512), FLUX_L20[512])
    fit.refit_if_due()
    assert fit.seconds(row(4096)) == pytest.approx(FLUX_L20[4096], rel=0.05)


def test_memory_is_bounded_whatever_sizes_come() -> None:
    fit = StageFit(VAGUE, (row(1024),), level_weight=1.0)
    for side in range(64, 64 + 16 * 500, 16):
        fit.observe(row(side), 1.0)
    assert fit.observations == 500
    assert sum(fit.cell(row(side)) is not None for side in range(64, 64 + 16 * 500, 16)) <= 48
