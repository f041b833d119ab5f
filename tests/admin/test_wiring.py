"""Settings become policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.given_settings import load_settings
from gateway.service.interfaces import BACKGROUND
from gateway.settings import InvalidSettings, Settings
from gateway.shell.assembly import BACKGROUND_SHARE, elastic_settings, policies
from scheduler.cost.profile import bundled
from scheduler.cost.work import Target
from scheduler.elastic.settings import Ordering
from wire.types import Role

PROFILE = Path(__file__).parent.parent / "elastic_live" / "two_halves.toml"


def test_every_setting_of_the_scheduler_arrives() -> None:
    chosen = elastic_settings(
        Settings(
            order="first-come",
            tenant_shares={"a": 2.0},
            max_waiting_requests=7,
            max_batch=1,
            preemption=False,
            elastic_roles=False,
            exclusive_roles=True,
            role_interval_seconds=0.5,
            role_dwell_seconds=3.0,
        )
    )
    assert (chosen.ordering, chosen.max_requests) == (Ordering.FIRST_COME, 7)
    assert chosen.tenant_shares == {"a": 2.0, BACKGROUND: BACKGROUND_SHARE}
    assert (chosen.max_batch, chosen.preemption, chosen.elastic_roles) == (1, False, False)
    assert (chosen.roles.exclusive, chosen.roles.interval_seconds, chosen.roles.dwell_seconds) == (True, 0.5, 3.0)


def test_what_is_switched_off_is_off() -> None:
    assert policies(Settings(elastic_roles=False)).roles is None
    assert policies(Settings(preemption=False)).preemption is None
    assert policies(Settings(max_attempts=5)).max_failures == 5


def test_profiles_beside_the_bundled_ones() -> None:
    cost = policies(Settings(profiles=(PROFILE,))).cost
    assert cost.profile(Target.of("two-halves", "half", "float32")) is not None
    assert not cost.is_guess(Target.of("two-halves", "half", "float32"), Role.DIT)
    assert cost.is_guess(Target.of("two-halves", "another", "float32"), Role.DIT)
    assert all(cost.profile(Target.of(p.model.name, p.device_class, p.precision)) for p in bundled())


def test_a_profile_that_cannot_be_used(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("schema = 7")
    for path, complaint in ((broken, "schema is 7, this version reads 1"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(InvalidSettings, match=f"DISAGFUSION_PROFILES: profile .*{complaint}"):
            policies(Settings(profiles=(path,)))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("order", "random"), ("tenant_shares", {"a": 0}), ("max_batch", 0), ("role_dwell_seconds", -1)],
)
def test_values_that_make_no_sense_name_the_variable(setting: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=f"DISAGFUSION_{setting.upper()}"):
        load_settings(**{setting: value})
