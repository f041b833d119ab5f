"""``python -m scheduler``: scenario files, tables, plots, plans, and what is said about mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scheduler.__main__ import main
from scheduler.sim import scenario_file
from scheduler.sim.scenario_file import ScenarioError, read
from scheduler.sim.setup import Kill, Unreachable
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
    assert "PROFILE[:PRICE[:MOST]]" in capsys.readouterr().err
    assert main(["plan", "--gpu", "gpu-of-dreams", "--rate", "1", "--slo", "5"]) == 1


def test_predict_is_wired(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", "FLUX.1-dev", "--device", "NVIDIA H100"]) == 0
    assert "device time" in capsys.readouterr().out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "simulate" in capsys.readouterr().err
    assert main(["--help"]) == 0
