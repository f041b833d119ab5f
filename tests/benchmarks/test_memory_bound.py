"""Row 9's monoliths, by hand."""

from __future__ import annotations

import pytest

from benchmarks import memory_bound
from benchmarks.memory_bound import MONOLITHS, _latencies
from scheduler.sim.suite import fleet

STAGES = [(1.0, 2.0), (5.0, 3.0), (1.0, 0.5)]
"""Seconds of compute, and of loading."""


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bound, "_servers", lambda: fleet("wan2.2-a14b-a10", 2))


@pytest.mark.parametrize(
    ("name", "count", "seconds"),
    [
        ("a swap per request", 1, 7.0 + 5.5),
        ("batches per stage", 3, 3 * 7.0 + 5.5),
        ("offloads well", 1, 3.0 + 5.0 + 2.0),  # what comes next is longer than the first and the last stage
        ("offloads well, batches per stage", 3, 3.0 + 15.0 + 3.0),
    ],
)
def test_what_a_worker_needs(name: str, count: int, seconds: float) -> None:
    _, serve = MONOLITHS[name]
    assert serve(STAGES, count) == seconds


@pytest.mark.usefixtures("two_workers")
def test_requests_are_taken_in_order_by_the_worker_that_is_free_first() -> None:
    most, serve = MONOLITHS["a swap per request"]
    assert _latencies([0.0, 0.0, 1.0, 30.0], STAGES, most, serve) == [12.5, 12.5, 24.0, 12.5]


@pytest.mark.usefixtures("two_workers")
def test_workers_that_are_free_share_what_waits_and_one_takes_it_all() -> None:
    most, serve = MONOLITHS["batches per stage"]
    took = _latencies([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], STAGES, most, serve)
    assert took == [12.5, 12.5, 31.0, 31.0, 31.0, 31.0]
    assert _latencies([0.0, 1.0, 2.0, 2.0], STAGES, most, serve) == [12.5, 12.5, 30.0, 30.0]


def test_all_weights_of_a_request_come_to_what_was_asked_for() -> None:
    assert sum(load for _, load in memory_bound._stages(100.0)) == pytest.approx(100.0)
