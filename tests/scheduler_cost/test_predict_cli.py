from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.cost.predict_cli import main

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
