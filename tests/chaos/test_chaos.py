"""A few random faults of everything; ``make chaos`` does a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run
from tests.needed import needs

FAULTS = 25


@pytest.mark.nightly  # a minute, and both cores to itself
@needs("postgresql")
async def test_requests_survive_random_faults(tmp_path: Path) -> None:
    outcome = await run(tmp_path, seed=7, faults=FAULTS, gateways=2, servers=5, rate=3.0, pace=0.8)
    assert outcome.complaints == []
    assert outcome.faults.total() >= FAULTS / 2, outcome.undone
    assert outcome.pictures_checked >= FAULTS
