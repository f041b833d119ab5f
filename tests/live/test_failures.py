"""What goes wrong behind the API, and clients that go away."""

from __future__ import annotations

import json
import re
import socket

import openai
import pytest

from tests.live.conftest import CRASH_SEED, MAX_WAITING, arguments, until
from tests.live.test_refusals import told
from tests.picture_service import KEY, MODEL

pytestmark = pytest.mark.services

LONG = {"model": MODEL, "prompt": "x", "num_inference_steps": 200}


def test_t34_a_full_queue(sdk, service):
    with service.processes["dit"].frozen():
        admitted = [sdk.images.generate(**arguments(), stream=True) for _ in range(MAX_WAITING)]
        with pytest.raises(openai.InternalServerError) as full:
            sdk.images.generate(**arguments())
        for stream in admitted:
            stream.close()
    assert told(full.value) == (503, "service_unavailable_error", "server_is_overloaded", None)
    headers = full.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    assert int(headers["retry-after-ms"]) == 1000 * int(headers["retry-after"])
    until(lambda: sdk.images.generate(**arguments()).data, "a picture, now that there is room again")


def test_t35_a_crash_tells_nothing_of_itself(sdk, service):
    with pytest.raises(openai.InternalServerError) as crash:
        sdk.images.generate(**arguments(seed=CRASH_SEED))
    assert told(crash.value) == (500, "server_error", "server_error", None)
    assert not [word for word in ("secret", "Traceback", "RuntimeError", ".py") if word in crash.value.response.text]
    assert "injected at /secret/path.py" in service.log("dit").read_text()
    assert crash.value.request_id in service.log("gateway").read_text()


def test_t36_a_deadline_that_passes(sdk, service):
    predicted = int(sdk.images.with_raw_response.generate(**arguments()).headers["x-predicted-wait-ms"]) / 1000
    enough = {"x-request-timeout": str(2 + 3 * predicted)}  # to be let in
    with service.processes["dit"].frozen(), pytest.raises(openai.InternalServerError) as late:
        sdk.images.generate(**arguments(), extra_headers=enough)
    assert told(late.value) == (504, "server_error", "timeout", None)


def test_t44_a_client_that_leaves_a_stream_cancels_its_work(http, service):
    with http.stream("POST", "/v1/images/generations", json=LONG | {"stream": True}) as answer:
        request = answer.headers["x-request-id"]
        assert any(re.fullmatch(r": image 0 step \d+/200", line) for line in answer.iter_lines())
    is_cancelled(service, request)


def test_t44_a_client_that_leaves_cancels_its_work(service):
    body = json.dumps(LONG).encode()
    host, port = service.url.removeprefix("http://").split(":")
    offset = len(service.log("gateway").read_text())
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s" % (KEY.encode(), len(body), body)
        )
        until(lambda: not service.is_idle(), "a job")

    def line() -> re.Match[str] | None:
        return re.search(r'(req_\w+) "POST /v1/images/generations" 499', service.log("gateway").read_text()[offset:])

    is_cancelled(service, until(line, "a line about a client that left")[1])


def is_cancelled(service, request: str) -> None:
    """The stage servers stopped, and the request's span says why it ended."""
    until(service.is_idle, "servers without jobs")
    ended = f'"disagfusion.request_id": "{request}",\n        "error.type": "client_disconnect"'
    until(lambda: ended in service.log("gateway").read_text(), "the request's span")
    assert f"{request} dit-0: done" not in service.log("dit").read_text()
