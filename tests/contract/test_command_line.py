"""Our own clients against the real API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from clients import generate
from clients.load import command as load


def test_pictures_with_previews_and_their_seeds(live, service, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "star.webp"
    arguments = ["a star", "--n", "2", "--seed", "4", "--partial", "1", "--steps", "8", "-o", str(output), "--json"]
    assert generate.main([*arguments, "--url", live]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [(Path(file["path"]).name, file["seed"]) for file in made["files"]] == [
        ("star-0.webp", 4),
        ("star-1.webp", 5),
    ]
    assert made["predicted_seconds"] == 1.25
    assert made["first_partial_seconds"] is not None
    assert all(Image.open(file["path"]).format == "WEBP" for file in made["files"])
    assert len(list(tmp_path.iterdir())) == 2
    assert service.requests[0].images[0].previews == 1


def test_refusals_in_the_servers_words(live, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert generate.main(["a star", "--size", "banana", "-o", str(tmp_path / "star.png"), "--url", live]) == 1
    assert capsys.readouterr().err.startswith("400 invalid_value: Invalid size 'banana'")


@pytest.mark.parametrize("arrivals", ["closed", "gamma"])
def test_a_load_of_whole_answers_and_streams(live, service, capsys: pytest.CaptureFixture[str], arrivals: str):
    mix = "1:64x64/4,1:96x96/8+stream"
    arguments = ["--arrivals", arrivals, "--rate", "100", "--requests", "12", "--seeded-share", "0.5", "--json", "-"]
    assert load.main([*arguments, "--mix", mix, "--url", live]) == 0
    found = json.loads(capsys.readouterr().out)["summary"]
    assert found["succeeded"] == found["prediction"]["requests"] == 12
    assert found["first_partial_seconds"]["p50"] > 0
    assert {request.seeded for request in service.requests} == {True, False}
