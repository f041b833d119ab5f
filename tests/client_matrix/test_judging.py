"""The client matrix judges what drivers tell: it must be able to fail. Needs no client and no service."""

from __future__ import annotations

import base64
import io

import httpx
import pytest
from PIL import Image

from tests.client_matrix import service
from tests.client_matrix.cases import CASES, DEFAULT_SIZE, Saw, Wrong
from tests.client_matrix.environments import read_clients
from tests.client_matrix.table import Cell, Column, Verdict, failures, page

JUDGES = {case.name: case.judge for case in CASES}
SPENT = {"status": 429, "type": "insufficient_quota", "code": "insufficient_quota", "message": "Used up."}
BAD_LINE = {"bad": "invalid_value"}
FULL = {"status": 503, "type": "service_unavailable_error", "code": "server_is_overloaded", "message": "Full."}


def drawn(*colours: str, size: tuple[int, int] = DEFAULT_SIZE, kind: str = "PNG") -> list[dict[str, str]]:
    found = []
    for colour in colours:
        buffer = io.BytesIO()
        Image.new("RGB", size, colour).save(buffer, kind)
        found.append({"b64": base64.b64encode(buffer.getvalue()).decode()})
    return found


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("generate", {"pictures": drawn("red")}),
        ("n", {"pictures": drawn("red", "blue")}),
        ("size", {"pictures": drawn("red", size=(64, 32)), "asked": "64x32"}),
        ("seed", {"pictures": drawn("red", "red")}),
        ("stream", {"events": ["image_generation.completed"], "pictures": drawn("red")}),
        ("bad_parameter", {"error": {"status": 400, "param": "size", "message": "Invalid."}}),
        ("files", {"id": "file-1", "sent": 3, "bytes": 3, "listed": True, "deleted": True}),
        ("job", {"id": "job_1", "posted": "queued", "ended": "completed", "pictures": drawn("red")}),
        ("batch", {"ended": "completed", "counts": [2, 1], "errors": BAD_LINE, "pictures": drawn("red", "blue")}),
        ("once", {"pictures": drawn("red", "red")}),
        ("budget", {"error": SPENT, "tries": 0, "pictures": drawn("red")}),
    ],
)
def test_what_is_right_passes(case, told):
    JUDGES[case](Saw(told))


@pytest.mark.parametrize(
    ("case", "told", "complaint"),
    [
        ("generate", {"pictures": []}, "0 pictures"),
        ("generate", {"pictures": [{"b64": "aGVsbG8="}]}, "no picture"),
        ("generate", {"pictures": drawn("red", kind="JPEG")}, "JPEG"),
        ("generate", {"pictures": drawn("red", size=(64, 64))}, "(64, 64)"),
        ("n", {"pictures": drawn("red", "red")}, "same"),
        ("size", {"pictures": drawn("red")}, "default size"),
        ("url", {"pictures": drawn("red")}, "came as b64"),
        ("seed", {"pictures": drawn("red", "blue")}, "other bytes"),
        ("concurrent", {"pictures": drawn(*["red"] * 8)}, "different seeds"),
        ("stream", {"events": ["image_edit.completed"], "pictures": drawn("red")}, "image_edit.completed"),
        ("bad_parameter", {"answer": "a picture"}, "no error"),
        ("bad_parameter", {"error": {"status": 400, "code": "invalid_type", "message": "Invalid."}}, "invalid_type"),
        ("models", {"models": ["tiny-shapes"]}, "gpt-image-1"),
        ("files", {"id": "file-1", "sent": 3, "listed": False}, "lacks"),
        ("job", {"id": "job_1", "posted": "queued", "ended": "failed", "pictures": []}, "ended 'failed'"),
        ("batch", {"ended": "completed", "counts": [3, 0], "errors": {}, "pictures": []}, "[3, 0]"),
        ("batch", {"ended": "completed", "counts": [2, 1], "errors": {}, "pictures": drawn("red", "blue")}, "says {}"),
        ("once", {"pictures": drawn("red", "blue")}, "another picture"),
        ("over_limit", {"pictures": drawn("red")}, "no error"),
        ("over_limit", {"pictures": [], "error": SPENT}, "0 pictures"),
        ("budget", {"error": SPENT, "tries": 2, "pictures": drawn("red")}, "0 tries instead of 2"),
        ("full", {"pictures": drawn("red")}, "0 tries"),
        ("gives_up", {"error": FULL, "tries": 2}, "0 tries instead of 2"),
        ("abort", {"error": FULL}, "did not give up"),
        ("abort", {"gave_up": "TimeoutError"}, "still works"),
    ],
)
def test_what_is_wrong_is_named(case, told, complaint):
    with pytest.raises(Wrong) as wrong:
        JUDGES[case](Saw(told))
    assert complaint in str(wrong.value)


def test_the_busy_door_refuses_as_the_gateway_does_then_lets_through(monkeypatch):
    def behind(url, **request):
        body = {"url": url, "body": request["content"].decode()}
        return httpx.Response(200, json=body, headers={"x-should-retry": "false"})

    with service.busy_door("http://gateway.test") as door:
        first = httpx.post(f"{door.url('full')}/images/generations", content=b"{}")
        monkeypatch.setattr(service.httpx, "post", behind)
        with httpx.Client() as client:
            second = client.request("POST", f"{door.url('full')}/images/generations", content=b"{}")
        assert door.tries == {"full": 2, "limited": 0, "gives_up": 0, "budget": 0}
    assert (first.status_code, first.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert (first.headers["retry-after"], first.headers["retry-after-ms"]) == ("1", "1000")
    assert second.headers["x-should-retry"] == "false"
    assert second.json() == {"url": "http://gateway.test/v1/images/generations", "body": "{}"}


def test_the_page_tells_failures_and_absent_clients():
    first, second, *_ = read_clients()
    cells = {case.name: Cell(Verdict.OK) for case in CASES} | {"n": Cell(Verdict.FAILED, "1 pictures instead of 2")}
    columns = [Column(first, cells), Column(second, {}, not_installed="no network")]
    assert failures(columns) == [f"{first.name}, n: 1 pictures instead of 2"]
    text = page(columns)
    assert f"{len(CASES) - 1} passed, 1 failed" in text
    assert f"{second.name} is not installed: no network" in text


def test_every_driver_exists_and_every_version_is_exact():
    for client in read_clients():
        assert client.driver.exists(), client.driver
        assert all("==" in package for package in client.pip)
        assert all(version[0].isdigit() for version in client.npm.values())
