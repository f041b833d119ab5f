"""Emulated servers by the dozen, in front of the real gateway."""

from __future__ import annotations

import pytest

from benchmarks import large_fleet
from benchmarks.swarm import Figures
from wire.types import Role

pytestmark = pytest.mark.services

SECONDS = {Role.ENCODER: 0.01, Role.DIT: 0.1, Role.DECODER: 0.01}


async def test_every_server_of_a_swarm_computes_and_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_fleet, "IN_PROCESS", 4)
    with large_fleet._running(6, SECONDS) as (gateway, swarms):
        await large_fleet._burst(gateway.port, 6)
        figures = swarms.figures()
        again = swarms.figures()
    assert (figures.servers, figures.jobs, figures.lost) == (6, 18, 0)
    assert figures.computed == pytest.approx(6 * 0.12)
    assert again == Figures(servers=6, heartbeats=again.heartbeats, worst=again.worst)
