"""The collector's set-up, and that requests leave it nothing to do."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from gateway.shell.garbage import THRESHOLDS, spare_pauses


@pytest.fixture
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("collector")
def test_what_start_up_made_is_not_looked_at_again() -> None:
    spare_pauses()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == THRESHOLDS
