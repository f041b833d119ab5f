"""The command line that makes and edits pictures, against a server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clients import edit, generate, making, terminal
from clients.address import base_url
from clients.terminal import CLEAR
from tests.clients.conftest import B64, PICTURE, FakeServer, completed, event

PARTIAL = event("image_generation.partial_image", b64_json=B64, partial_image_index=0)


@pytest.fixture
def in_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_live", lambda *_: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize("given", ["http://host:80", "http://host:80/", "http://host:80/v1", "http://host:80/v1/"])
def test_a_host_is_enough_of_an_address(given: str) -> None:
    assert base_url(given) == "http://host:80/v1"


def test_one_file_per_picture_in_the_format_of_its_ending(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stream = [completed(image_index=1), completed(image_index=0)]
    output = tmp_path / "star.JPG"
    arguments = ["a star", "-o", str(output), "--n", "2", "--size", "64x32", "--steps", "4", "--seed", "0"]
    assert generate.main([*arguments, "--negative-prompt", "", "--url", server.url]) == 0
    body = {"prompt": "a star", "size": "64x32", "num_inference_steps": 4, "seed": 0, "n": 2, "negative_prompt": ""}
    body |= {"output_format": "jpeg", "stream": True, "partial_images": 0}
    assert server.requests == [("/v1/images/generations", body)]
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [PICTURE] * 2
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'star-1.JPG'}\n{tmp_path / 'star-0.JPG'}\n"
    assert told.err == "", "nobody watches"


@pytest.mark.usefixtures("in_terminal")
def test_a_terminal_gets_progress_and_a_preview_that_goes_away(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stream = [b": admitted, predicted 2.00 s\n\n", PARTIAL, completed(seed=7)]
    output = tmp_path / "star.png"
    assert generate.main(["a star", "-o", str(output), "--json", "--url", server.url]) == 0
    assert server.requests[0][1]["partial_images"] == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"{CLEAR}sent  0.0 s{CLEAR}")
    assert re.search(r"admitted  [0-9.]+ s of about 2\.0 s", told.err)
    assert f"preview in {tmp_path / 'star.partial.png'}\n" in told.err
    assert list(tmp_path.iterdir()) == [output]
    made = json.loads(told.out)
    assert made["files"] == [{"path": str(output), "seed": 7}]
    assert made["predicted_seconds"] == 2
    assert 0 < made["first_partial_seconds"] < made["seconds"]


@pytest.mark.usefixtures("in_terminal")
def test_a_terminal_that_can_shows_the_pictures_themselves(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM_PROGRAM", "WezTerm")
    server.stream = [PARTIAL, completed()]
    assert generate.main(["a star", "-o", str(tmp_path / "star.png"), "--url", server.url]) == 0
    assert capsys.readouterr().err.count(f":{B64}\a") == 2


def test_without_a_stream_the_stages_are_told(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.headers = {"server-timing": 'dit.0.compute;dur=1200;desc="s2 steps=8", odd', "x-seed": "5"}
    server.body = {"data": [{"b64_json": B64}, {"b64_json": None, "url": f"{server.url}/files/x.png"}]}
    output = tmp_path / "star.png"
    assert generate.main(["a star", "-o", str(output), "--n", "2", "--no-stream", "--url", server.url]) == 0
    assert "stream" not in server.requests[0][1]
    assert capsys.readouterr().out.splitlines()[2].split() == ["dit.0.compute", "1.200", "s"]
    assert (tmp_path / "star-1.png").read_bytes() == PICTURE
    assert server.keys == ["Bearer secret", None], "a picture's address is none of the API"


ENVELOPE = {"error": {"message": "Too busy.", "type": "x", "param": None, "code": "server_is_overloaded"}}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"status": 503, "body": ENVELOPE}, "503 server_is_overloaded: Too busy. (to be tried again in 12 s)\n"),
        ({"status": 502, "body": "Bad gateway"}, "502 unreadable: Bad gateway (to be tried again in 12 s)\n"),
        ({"stream": [event("error", **ENVELOPE)]}, "server_is_overloaded: Too busy.\n"),
        ({"stream": [b": keep-alive\n\n"]}, "URL/v1 sent the answer ended after 0 of 1 pictures\n"),
        ({"body": {}}, "URL/v1 sent an answer without data: '{}'\n"),
        ({"body": b"<html>Welcome"}, "URL/v1 sent an answer that is no JSON: '<html>Welcome'\n"),
    ],
    ids=str,
)
def test_what_the_server_says_takes_a_line(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: dict[str, object], said: str
) -> None:
    server.headers = {"retry-after": "12"}
    for name, value in setting.items():
        setattr(server, name, value)
    assert generate.main(["a star", "-o", str(tmp_path / "star.png"), "--url", server.url]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", said.replace("URL", server.url))
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_silent_or_absent_takes_a_line(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stream, server.hang = [b": keep-alive\n\n"], True
    arguments = ["a star", "-o", str(tmp_path / "star.png"), "--timeout", "0.2", "--url"]
    assert generate.main([*arguments, server.url]) == 1
    assert capsys.readouterr().err == f"{server.url}/v1 took longer than --timeout 0.2 s\n"
    assert generate.main([*arguments[:3], "--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith("http://127.0.0.1:9/v1 cannot be reached: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a star", "-o", "star.bmp"], "'star.bmp' ends in none of .png, .jpg, .jpeg, .webp"),
        (["a star", "-o", "star.png", "--format", "webp"], "'star.png' does not end as --format webp does"),
        (["a star", "-o", "nowhere/star.png"], "'nowhere' is no folder to write to"),
        (["a star", "--partial", "1", "--no-stream"], "--partial needs a stream"),
        ([], "one prompt is needed"),
    ],
)
def test_mistakes_cost_no_request(
    server: FakeServer, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        generate.main([*arguments, "--url", server.url])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not server.requests


def test_an_edit_is_sent_as_a_form(server: FakeServer, tmp_path: Path) -> None:
    server.stream = [event("image_edit.completed", b64_json=B64)]
    for name in ("a.png", "b.jpg", "m.png"):
        (tmp_path / name).write_bytes(name.encode())
    output = tmp_path / "out.png"
    inputs = ["-i", str(tmp_path / "a.png"), "--mask", str(tmp_path / "m.png")]
    shared = ["--prompt", "add a star", "-o", str(output), "--seed", "3", "--url", server.url]
    assert edit.main([*inputs, *shared]) == 0
    assert output.read_bytes() == PICTURE
    path, form = server.requests[0]
    assert path == "/v1/images/edits"
    assert form == {
        "image": ("a.png", "image/png", b"a.png"),
        "mask": ("m.png", "image/png", b"m.png"),
        "prompt": "add a star",
        "seed": "3",
        "output_format": "png",
        "stream": "true",
        "partial_images": "0",
    }
    assert edit.main([*inputs, "-i", str(tmp_path / "b.jpg"), *shared]) == 0
    _, form = server.requests[1]
    assert form["image[]"] == [("a.png", "image/png", b"a.png"), ("b.jpg", "image/jpeg", b"b.jpg")]


def test_a_picture_that_cannot_be_read_costs_no_request(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        edit.main(["-i", "absent.png", "x", "--url", server.url])
    assert "absent.png cannot be read: No such file or directory" in capsys.readouterr().err
    assert not server.requests


def test_ctrl_c_leaves_nothing_behind(server: FakeServer, tmp_path: Path) -> None:
    server.stream, server.hang = [PARTIAL], True
    command = [sys.executable, "-m", "clients", "generate", "a star", "-o", str(tmp_path / "star.png")]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
    process = subprocess.Popen(
        [*command, "--partial", "1", "--url", server.url],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.started.wait(30)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == making.INTERRUPTED
    assert server.left.wait(30), "the server hears of it"
    assert not list(tmp_path.iterdir())
