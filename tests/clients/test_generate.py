"""The command line that makes pictures: addresses, file names, faults."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import httpx
import pytest

from clients import generate
from clients.address import base_url

PICTURE = b"bytes of a picture"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    requests: list[tuple[str, dict[str, object]]] = []

    def post(url: str, *, json: dict[str, object], **_: object) -> httpx.Response:
        requests.append((url, json))
        items = [{"b64_json": base64.b64encode(PICTURE).decode()}] * int(str(json["n"] or 1))
        return httpx.Response(200, json={"data": items})

    monkeypatch.setattr(httpx, "post", post)
    return requests


@pytest.mark.parametrize("given", ["http://host:80", "http://host:80/", "http://host:80/v1", "http://host:80/v1/"])
def test_a_host_is_enough_of_an_address(given: str) -> None:
    assert base_url(given) == "http://host:80/v1"


def test_one_file_per_picture_in_the_format_of_its_ending(
    sent: list[tuple[str, dict[str, object]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(["a star", "-o", str(tmp_path / "star.JPG"), "--n", "2", "--url", "http://host"]) == 0
    assert (sent[0][0], sent[0][1]["output_format"]) == ("http://host/v1/images/generations", "jpeg")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [PICTURE] * 2
    assert json.dumps(str(tmp_path / "star-1.JPG"))[1:-1] in capsys.readouterr().out


def test_mistakes_take_a_line_each(
    sent: list[tuple[str, dict[str, object]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        generate.main(["a star", "-o", "star.bmp"])
    assert "'star.bmp' ends in none of .png, .jpg, .jpeg, .webp" in capsys.readouterr().err
    assert not sent
    assert generate.main(["a star", "-o", str(tmp_path / "nowhere" / "star.png")]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
