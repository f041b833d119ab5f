"""What fleets carry."""

from __future__ import annotations

import pytest

from scheduler.roles.problem import RoleNeed, ServerClass
from scheduler.scaling.capacity import Capacities
from scheduler.scaling.outlook import Outlook
from wire.types import REQUIRED

E, D, V = REQUIRED
SHARES = {E: 1.0, D: 8.0, V: 1.0}


def _class(name: str, memory: int, speed: float = 1.0) -> ServerClass:
    return ServerClass(name, memory, {role: RoleNeed(speed, weights_bytes=10) for role in REQUIRED})


def test_servers_that_hold_everything_add_up() -> None:
    classes = {"fast": _class("fast", 30, 2.0), "slow": _class("slow", 30)}
    assert Capacities().of({"fast": 2, "slow": 1}, classes, SHARES) == pytest.approx(5.0)


def test_servers_that_hold_one_role_each_are_split_as_well_as_can_be() -> None:
    classes = {"small": _class("small", 10)}
    capacities = Capacities()
    assert capacities.of({"small": 2}, classes, SHARES) == 0.0
    assert capacities.of({"small": 3}, classes, SHARES) == pytest.approx(1.25, rel=0.05)
    assert capacities.of({"small": 10}, classes, SHARES) == pytest.approx(10.0, rel=0.05)


def test_nobody_carries_nothing() -> None:
    assert Capacities().of({"small": 0}, {"small": _class("small", 10)}, SHARES) == 0.0


def test_a_queue_that_grows_is_seen_before_it_is_too_long() -> None:
    outlook = Outlook(0.0, lambda _ahead, errors: 2.0 + errors, 0.0, 60.0)
    assert outlook.carried([(0.0, 2.0)], 0.0, 300.0, 0.0)
    assert not outlook.carried([(0.0, 2.0)], 0.0, 300.0, 1.0)
    assert outlook.carried([(0.0, 2.0), (60.0, 3.0)], 0.0, 300.0, 1.0)
    assert not outlook.carried([(0.0, 0.0), (200.0, 9.0)], 0.0, 300.0, 0.0)
    assert outlook.carried([(0.0, 0.0), (100.0, 9.0)], 150.0, 300.0, 0.0)
