"""Random schedules with faults: invariants after every event, one end per request, nothing left, exact replays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.schedules import run

CHUNK = 100
REPLAYED = 15


@pytest.mark.parametrize("first", range(0, 800, CHUNK))
def test_random_schedules(first: int) -> None:
    ends: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        ends.update(run(seed).ended.values())
    assert ends["finished"] > CHUNK // 2  # or the schedules would test nothing but failures
    errors = {"input_lost", "engine_error", "non_finite", "poison"}
    assert ends.keys() <= {"finished", "cancelled", "deadline", "no_capacity"} | errors


@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_reports_that_are_decided_on_together(first: int) -> None:
    ends: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        ends.update(run(seed, bunched=True).ended.values())
    assert ends["finished"] > CHUNK // 2


@pytest.mark.parametrize("bunched", [False, True])
def test_servers_that_help_each_other(bunched: bool) -> None:
    ends: Counter[str] = Counter()
    helps = 0
    for seed in range(CHUNK // 2):
        witness = run(seed, bunched=bunched, guided=True)
        ends.update(witness.ended.values())
        helps += witness.helps
    assert ends["finished"] > CHUNK // 2
    assert helps > CHUNK // 4


@pytest.mark.parametrize("seed", [1729, 3605, 10490])
def test_schedules_that_failed_once(seed: int) -> None:
    run(seed)


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, 100_000, 1000))
def test_many_random_schedules(first: int) -> None:
    for seed in range(first, first + 1000):
        run(seed)


def test_a_seed_replays_byte_for_byte() -> None:
    for seed in range(REPLAYED):
        assert run(seed).digest.text() == run(seed).digest.text()
    assert run(0).digest.text() != run(1).digest.text()


def test_a_seed_replays_in_another_process() -> None:
    program = f"from tests.simulation.schedules import run; print(*(run(s).digest.text() for s in range({REPLAYED})))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
