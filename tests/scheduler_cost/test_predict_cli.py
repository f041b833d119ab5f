from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler.cost.predict_cli import main

PROFILE = Path(__file__).parents[2] / "scheduler/profiles/flux.1-dev-h100.toml"
FLUX = ["--model", "black-forest-labs/FLUX.1-dev", "--device", "NVIDIA H100"]


def test_it_prints_every_stage_and_how_the_figures_came_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FLUX) == 0
    out = capsys.readouterr().out
    assert "dit: 6.4 s" in out
    assert "prior: profile FLUX.1-dev on NVIDIA H100 in bfloat16, 0 observations" in out
    assert "in all: 6.458 s of device time" in out


def test_one_role_of_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FLUX, "--role", "decoder", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("decoder: 0.05382 s")
    assert "dit" not in out


def test_uploaded_pictures_count_at_the_size_at_which_they_are_encoded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def seconds(*more: str) -> dict[str, float]:
        assert main([*FLUX, *more]) == 0
        found = re.findall(r"^(\w+): ([\d.]+) s", capsys.readouterr().out, re.MULTILINE)
        return {role: float(figure) for role, figure in found}

    plain, small, large = seconds(), seconds("--upload", "256x256"), seconds("--upload", "4096x4096")
    assert small == large, "without a rule they get the answer's size"
    assert small["encoder"] > plain["encoder"]
    assert small["dit"] == plain["dit"]
    edits = tmp_path / "edits.toml"
    rule = "references = { max_area = 1048576, multiple = 16, in_sequence = true }"
    edits.write_text(PROFILE.read_text().replace("[model]", f"[model]\n{rule}"))
    own = ("--no-bundled", "--profile", str(edits))
    plain, small, large = seconds(*own), seconds(*own, "--upload", "256x256"), seconds(*own, "--upload", "4096x4096")
    assert plain["encoder"] < small["encoder"] < large["encoder"]
    assert plain["dit"] < small["dit"] < large["dit"]
    assert large == seconds(*own, "--upload", "1024x1024")
    both = seconds(*own, "--upload", "1024x1024", "--upload", "256x256")
    assert both["dit"] > large["dit"]


@pytest.mark.parametrize(
    ("rule", "complaint"), [("{ max_aera = 1 }", "max_aera"), ("{ multiple = 0 }", "multiple"), ("7", "a table with")]
)
def test_a_rule_that_is_none_is_named(
    rule: str, complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "edits.toml"
    text = PROFILE.read_text()
    path.write_text(text.replace("[model]", f"[model]\nreferences = {rule}"))
    assert main([*FLUX, "--profile", str(path)]) == 1
    assert complaint in capsys.readouterr().err


def test_a_bad_profile_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("schema = 1\n")
    assert main([*FLUX, "--profile", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "message"), [(["--steps", "0"], "1 or more"), (["--size", "big"], "write WIDTHxHEIGHT")]
)
def test_bad_arguments_are_usage_errors(extra: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*FLUX, *extra])
    assert message in capsys.readouterr().err
