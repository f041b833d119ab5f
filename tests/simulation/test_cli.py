"""``python -m scheduler``: scenario files, tables, plots, plans, and what is said about mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.plan import LARGEST, measure
from scheduler.__main__ import main
from scheduler.sim import scenario_file
from scheduler.sim.scenario_file import ScenarioError, read
from scheduler.sim.setup import Kill, Unreachable
from scheduler.sim.suite import bundled_profile
from wire.types import Role

SMALL = """
name = "small"

[[servers]]
profile = "flux.1-dev-h100"
count = 2

[[servers]]
name = "pinned"
profile = "flux.1-dev-h100"
roles = ["encoder"]
joins_at = 5

[kinds.quick]
height = 512
width = 512
steps = 4

[[phases]]
seconds = 30
load = 0.5
mix = { quick = 1.0 }

[[faults]]
kind = "kill"
at = 10
server = "gpu1"
restart_after = 5.0
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_a_scenario_file(small: Path) -> None:
    scenario = read(small)
    assert [server.name for server in scenario.servers] == ["gpu1", "gpu2", "pinned1"]
    assert scenario.servers[2].roles == {Role.ENCODER}
    assert {Role.DIT, Role.DECODER} <= scenario.servers[0].roles
    assert scenario.faults == (Kill(10.0, "gpu1", 5.0),)
    assert scenario.workload.phases[0].rate > 0


def test_every_scenario_that_comes_along_can_be_read() -> None:
    folder = Path(scenario_file.__file__).parent / "scenarios"
    assert {read(path).name for path in folder.glob("*.toml")} == {
        "from 8 steps to 1 and back",
        "a bad quarter of an hour",
        "backlog",
        "pools",
    }


def test_who_cannot_fetch_from_a_server(small: Path) -> None:
    small.write_text(SMALL.replace('"kill"', '"unreachable"\nfrom = ["gpu2", "gateway"]\nuntil = 9', 1))
    (fault,) = read(small).faults
    assert isinstance(fault, Unreachable)
    assert (fault.server, fault.fetchers, fault.until) == ("gpu1", {"gpu2", "gateway"}, 9)


def test_a_suite_scenario_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('suite = "bursts"')
    assert read(path).name == "bursts"


@pytest.mark.parametrize(
    ("was", "now", "complaint"),
    [
        ("count = 2", "count = 'two'", "Expected `int`, got `str`"),
        ("count = 2", "number = 2", "unknown field `number`"),
        ("load = 0.5", "load = 0.5\nrate = 2", "exactly one of rate, load and backlog"),
        ("quick = 1.0", "slow = 1.0", "mixes slow; the kinds are quick"),
        ("steps = 4", "strides = 4", "kinds.quick"),
        ("steps = 4", "step_cache = 'low'", "name the step cache low; the servers' profiles know none"),
        ('"kill"', '"maim"', "kill, freeze, slow, leave or unreachable, not 'maim'"),
        ('"kill"', '"unreachable"', "unreachable needs from = "),
        ('"kill"', '"unreachable"\nfrom = ["gpu9"]', "does not have: gpu9"),
        ('server = "gpu1"', 'server = "gpu9"', "does not have: gpu9"),
        ('profile = "flux.1-dev-h100"\ncount', 'profile = "flux.2"\ncount', "the project's own are flux.1-dev-h100, "),
        ("seconds = 30", "seconds = 0", "more than 0 s"),
        ("[[phases]]", "[[phases]", "scenario"),
    ],
)
def test_mistakes_are_named(small: Path, was: str, now: str, complaint: str) -> None:
    small.write_text(SMALL.replace(was, now, 1))
    with pytest.raises(ScenarioError, match=complaint.replace("[", r"\[")):
        read(small)


def test_simulate_prints_a_table_and_writes_plots(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(small), "--seed", "1", "--out", str(tmp_path / "plots")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("small\n")
    assert "latency mean / p50 / p99" in text
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"throughput.png", "latency.png", "roles.png"}
    assert main(["simulate", str(small), "--seed", "1"]) == 0
    assert capsys.readouterr().out == "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("wrote"))


def test_without_matplotlib_the_table_comes_all_the_same(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["simulate", str(small), "--policies", "first-come", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "finished per second" in said.out
    assert "pip install 'disagfusion[bench]'" in said.err


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "nowhere.toml"]) == 1
    assert "scenario nowhere.toml: " in capsys.readouterr().err


def test_planning(capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--rate", "1", "--slo", "8", "--steps", "10", "--seconds", "60", "--policies", "first-come"]
    assert main(["plan", "--gpu", "flux.1-dev-h100:2:4", *load]) == 0
    assert "answer: 2 × NVIDIA H100, price 4" in capsys.readouterr().out
    assert main(["plan", "--gpu", "flux.1-dev-h100:2:1", *load]) == 1
    assert "no fleet" in capsys.readouterr().err


def test_plan_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--gpu", "flux.1-dev-h100:much", "--rate", "1", "--slo", "5"])
    assert "PROFILE[:PRICE[:MOST[:GB]]]" in capsys.readouterr().err
    assert main(["plan", "--gpu", "gpu-of-dreams", "--rate", "1", "--slo", "5"]) == 1


def test_predict_is_wired(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", "FLUX.1-dev", "--device", "NVIDIA H100"]) == 0
    assert "device time" in capsys.readouterr().out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "simulate" in capsys.readouterr().err
    assert main(["--help"]) == 0


@pytest.fixture
def four_bits(tmp_path: Path) -> Path:
    path = tmp_path / "memory.json"
    told = {"model": "black-forest-labs/FLUX.1-dev", "weight_bytes": {"encoder": 3 * 10**9, "dit": 7 * 10**9}}
    path.write_text(json.dumps(told))
    return path


LIGHT = ["--rate", "0.05", "--slo", "60", "--steps", "10", "--seconds", "300", "--policies", "first-come"]


def test_a_plan_for_a_model_says_which_roles_go_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "black-forest-labs/flux.1-DEV", *LIGHT, "--loads", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "answer: 1 × NVIDIA L20" in said
    assert "1 × NVIDIA L20: encoder + dit + decoder, 37.8 of 48 GB" in said
    assert "s on average; no more than " in said
    assert "requests/s (50%): 99 % within" in said


def test_a_model_that_does_not_fit_is_planned_with_fewer_bits(
    four_bits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On cards of 16 GB, of which there are no profiles: a name with a memory of its own."""
    small = ["plan", "--model", "FLUX.1-dev", "--gpu", "flux.1-dev-l20:1:4:16", *LIGHT]
    assert main(small) == 1
    assert "the dit of FLUX.1-dev takes 23.8 GB, and a job of it 4.0 GB; the largest device offered, NVIDIA L20, has " \
           "16 GB" in capsys.readouterr().err  # fmt: skip
    assert main([*small, "--memory", str(four_bits)]) == 0
    assert "encoder + dit + decoder, 14.2 of 16 GB" in capsys.readouterr().out


def test_one_profile_with_two_sizes_of_memory_is_two_offers(capsys: pytest.CaptureFixture[str]) -> None:
    both = ["--gpu", "flux.1-dev-l20:1:1:30", "--gpu", "flux.1-dev-l20:1:1:16"]
    assert main(["plan", *both, *LIGHT, "--slo", "400", "--rate", "0.08"]) == 0
    said = capsys.readouterr().out
    assert "1 × NVIDIA L20 + 1 × NVIDIA L20" in said
    assert "1 × NVIDIA L20: dit" in said


def test_mistakes_in_what_a_plan_is_for(four_bits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, complaint in (
        ([], "which devices? name profiles with --gpu"),
        (["--model", "dall-e"], "no profile of 'dall-e' comes along; there are FLUX.1-dev, "),
        (["--model", "sd3", "--gpu", "flux.1-dev-h100"], "a profile of FLUX.1-dev on NVIDIA H100, not of sd3"),
        (["--gpu", "sd3-l20", "--memory", str(four_bits)], "is of black-forest-labs/FLUX.1-dev, and the profile of"),
        (["--gpu", "sd3-l20", "--memory", "nowhere.json"], "is not what 'disagfusion memory --output' writes"),
        (["--gpu", "sd3-l20:1:2:3:4"], "PROFILE[:PRICE[:MOST[:GB]]]"),
        (["--gpu", "sd3-l20", "--loads", "2"], "no list of shares between 0 and 1"),
    ):
        with pytest.raises(SystemExit):
            main(["plan", *arguments, *LIGHT])
        assert complaint in capsys.readouterr().err


def test_a_forecast_is_that_of_simulations_it_has_not_seen() -> None:
    row = measure(bundled_profile("flux.1-dev-h100"), 8, 0.1)
    assert max(map(abs, row.off)) < LARGEST
