"""What loads take: apart by role, and by where the weights were."""

from __future__ import annotations

import pytest

from scheduler.elastic.load_times import GAIN, LoadTimes
from scheduler.spec import RoleCost, ServerSpec
from tests.scheduler.game import MODEL, D, E, V
from wire.types import ServerId


def spec(device: str = "gpu") -> ServerSpec:
    costs = {E: RoleCost(load_seconds=10.0, warm_seconds=1.0), D: RoleCost(load_seconds=20.0), V: RoleCost()}
    return ServerSpec(ServerId("a"), "a", MODEL, device, frozenset({E}), costs)


def test_until_measured_what_servers_announce() -> None:
    times = LoadTimes()
    assert times.seconds(spec(), E, warm=False) == 10.0
    assert times.seconds(spec(), E, warm=True) == 1.0
    assert times.seconds(spec(), D, warm=True) == 20.0  # not known, so as long as from files


def test_files_and_host_memory_are_learned_apart() -> None:
    times = LoadTimes()
    times.measured(spec(), {E}, 2.0, warm=True)
    assert times.seconds(spec(), E, warm=True) == pytest.approx(2.0**GAIN)
    assert times.seconds(spec(), E, warm=False) == 10.0


def test_a_role_never_measured_takes_what_its_class_taught_until_it_is() -> None:
    times = LoadTimes()
    times.measured(spec(), {E}, 20.0, warm=False)
    assert times.seconds(spec(), D, warm=False) == pytest.approx(20.0 * 2.0**GAIN)
    times.measured(spec(), {D}, 20.0, warm=False)
    assert times.seconds(spec(), D, warm=False) == pytest.approx(20.0 * 2.0 ** (GAIN - GAIN**2))
    assert times.seconds(spec(), E, warm=False) == pytest.approx(10.0 * 2.0**GAIN)
    assert times.seconds(spec("other"), E, warm=False) == 10.0


def test_roles_loaded_together_share_the_blame() -> None:
    times = LoadTimes()
    times.measured(spec(), {E, D}, 60.0, warm=False)
    assert times.seconds(spec(), E, warm=False) == pytest.approx(10.0 * 2.0**GAIN)
    assert times.seconds(spec(), D, warm=False) == pytest.approx(20.0 * 2.0**GAIN)


def test_nothing_is_learned_of_nothing() -> None:
    times = LoadTimes()
    times.measured(spec(), {V}, 5.0, warm=False)
    times.measured(spec(), {E}, 0.0, warm=False)
    assert (times.seconds(spec(), V, warm=False), times.seconds(spec(), E, warm=False)) == (0.0, 10.0)
