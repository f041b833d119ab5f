"""``plan`` for requests that pass through an upscaler, reuse steps, or wait for weights that come part by part."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.__main__ import main
from scheduler.cost.model import CostModel
from scheduler.cost.profile import Profile, load
from scheduler.sim.bound import fluid_rate
from scheduler.sim.engine import simulate
from scheduler.sim.planner import waiting_for_weights
from scheduler.sim.policies import named
from scheduler.sim.setup import Scenario
from scheduler.sim.suite import PROFILES, bundled_profile, fleet
from scheduler.sim.workload import Kind, Phase, Workload
from wire.types import Role

UPSCALER = """
[upscaler]
fixed_seconds = 0.5
seconds_per_pixel = 4e-6
factor = 2
weights_gb = 0.1
activation_gb = 5.0
load_seconds = 1.0
batch_marginal = [[0, 1.0]]
"""
LIGHT = ["--rate", "0.05", "--slo", "60", "--steps", "10", "--seconds", "300", "--policies", "first-come"]
KIND = Kind("k", steps=10)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Of a model that has an upscaler and a level."""
    text = (PROFILES / "flux.1-dev-h100.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("[dit]", '[dit]\nstep_caches = { low = 0.8, "very-high" = 0.4 }') + UPSCALER)
    return path


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[float, str]:
    """The mean latency of the answer, and all that was said."""
    assert main(["plan", *arguments, *LIGHT]) == 0
    said = capsys.readouterr().out
    found = re.search(r"([\d.]+) s on average; no more", said)
    assert found is not None
    return float(found[1]), said


def test_pictures_that_are_upscaled_take_the_upscaler_longer(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = planned(capsys, "--gpu", f"{profile}:1:2")
    larger, said = planned(capsys, "--gpu", f"{profile}:1:2", "--upscale")
    alone = 0.5 + 4e-6 * 1024**2
    assert plain + alone < larger < plain + 2 * alone, "some wait for others"
    assert "encoder + dit + decoder + upscaler" in said
    assert main(["plan", "--gpu", f"{profile}:1:2:4", "--upscale", *LIGHT]) == 1
    assert "the upscaler of FLUX.1-dev takes 0.1 GB, and a job of it 5.0 GB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "--gpu", "flux.1-dev-h100", "--upscale", *LIGHT])
    assert "no profile offered has a section [upscaler]; add one to a profile of yours" in capsys.readouterr().err


def test_steps_that_reuse_others_are_planned_with_what_the_profile_says(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, quick = (
        planned(capsys, "--gpu", f"{profile}:1:2", *more)[0] for more in ((), ("--step-cache", "very-high"))
    )
    assert quick < 0.6 * plain
    with pytest.raises(SystemExit):
        main(["plan", "--gpu", f"{profile}:1:2", "--step-cache", "high", *LIGHT])
    assert "name the step cache high; the servers' profiles know low, very-high" in capsys.readouterr().err


def test_simulated_devices_take_what_a_level_leaves(profile: Path) -> None:
    mine = load(profile)
    servers = fleet(mine, 1)
    means = []
    for level in ("", "low", "very-high"):
        phase = Phase(500.0, ((1.0, replace(KIND, step_cache=level)),), rate=0.02)
        scenario = Scenario("levels", (replace(servers[0], roles=frozenset({*mine.roles} - {Role.UPSCALER})),),
                            Workload((phase,)), noise=0.0)  # fmt: skip
        latencies = simulate(scenario, named("first-come", scenario), 1).latencies()
        means.append(sum(latencies) / len(latencies))
    whole = CostModel([mine]).seconds(KIND.works()[1], servers[0].target)
    assert means[0] - means[1] == pytest.approx(0.2 * whole, rel=0.15)
    assert means[0] - means[2] == pytest.approx(0.6 * whole, rel=0.15)


def seconds(profile: Profile, kind: Kind = KIND) -> float:
    (server,) = fleet(profile, 1)
    return CostModel([profile]).seconds(kind.works()[1], server.target)


def test_weights_that_come_for_each_call_bound_its_time_from_below() -> None:
    profile = bundled_profile("flux.1-dev-l20")
    alone = seconds(profile)
    quick = waiting_for_weights(profile, {Role.DIT: 0.5 * alone / 10}, KIND.works())
    assert seconds(quick) == alone, "they come while others compute"
    slow = waiting_for_weights(profile, {Role.DIT: 3.0 * alone / 10, Role.UPSCALER: 1.0}, KIND.works())
    assert seconds(slow) == pytest.approx(3.0 * alone)
    assert fluid_rate(fleet(slow, 1), Phase(1.0, ((1.0, KIND),))) < fluid_rate(
        fleet(profile, 1), Phase(1.0, ((1.0, KIND),))
    )


def test_a_plan_with_offloaded_weights_fits_and_is_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {
        "model": "FLUX.1-dev",
        "weight_bytes": {"encoder": 3 * 10**9, "dit": 2 * 10**9},
        "copy_seconds": {"dit": 2.0},
    }
    (tmp_path / "memory.json").write_text(json.dumps(told))
    small = ["--gpu", "flux.1-dev-l20:1:4:16", "--memory", str(tmp_path / "memory.json")]
    latency, said = planned(capsys, *small)
    assert "encoder + dit + decoder, 9.2 of 16 GB" in said
    assert latency > 20.0
    (tmp_path / "memory.json").write_text(json.dumps({**told, "copy_seconds": {"dit": "long"}}))
    with pytest.raises(SystemExit):
        main(["plan", *small, *LIGHT])
    assert "is not what 'disagfusion memory --output' writes" in capsys.readouterr().err
