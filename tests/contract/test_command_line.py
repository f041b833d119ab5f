"""Our own clients against the real API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from clients import batch, generate, jobs
from clients.load import command as load
from gateway.service.interfaces import OutOfDeviceMemory


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
    assert {request.exact for request in service.requests} == {True, False}


def test_a_job_from_its_post_to_its_picture(live_with_jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "star.webp"
    where = ("--url", live_with_jobs)
    assert jobs.main(["post", "a star", "--n", "2", "-o", str(output), "--wait", *where]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"star-{index}.webp") for index in range(2)]
    assert Image.open(tmp_path / "star-1.webp").format == "WEBP"
    assert jobs.main(["post", "a star", *where]) == 0
    job = capsys.readouterr().out.strip()
    assert jobs.main(["wait", job, "-o", str(tmp_path / "again.png"), *where]) == 0
    assert Image.open(tmp_path / "again.png").format == "PNG"
    assert jobs.main(["delete", job, *where]) == 0
    assert capsys.readouterr().out.endswith("deleted\n")
    assert jobs.main(["wait", job, *where]) == 1
    assert jobs.main(["list", *where]) == 1
    refused = capsys.readouterr().err
    assert "404 job_not_found" in refused
    assert "403 api_key_required" in refused


def test_a_job_that_fails_says_why(live_with_jobs, service, capsys: pytest.CaptureFixture[str]):
    service.error = OutOfDeviceMemory("too large")
    assert jobs.main(["post", "a star", "--wait", "--url", live_with_jobs]) == 1
    assert "No server has enough memory" in capsys.readouterr().err


def test_a_batch_from_its_file_to_its_pictures(live_with_jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bodies = {"a/star": {"prompt": "a star", "n": 2}, "a_star": {"prompt": "x"}, "none": {"prompt": ""}}
    requests = tmp_path / "in.jsonl"
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": body}
        for name, body in bodies.items()
    ]
    requests.write_text("\n".join(map(json.dumps, lines)))
    folder = tmp_path / "out"
    assert batch.main(["run", str(requests), "-o", str(folder), "--url", live_with_jobs]) == 1
    told = capsys.readouterr()
    made = ["a_star-0.png", "a_star-1.png", "a_star.png"]
    assert told.out.split() == [str(folder / name) for name in made]
    assert sorted(path.name for path in folder.iterdir()) == made
    assert told.err.startswith("none: ")
    requests.write_text("{")
    assert batch.main(["run", str(requests), "--url", live_with_jobs]) == 1
    assert "cannot be run: line 1: The line is no JSON" in capsys.readouterr().err
