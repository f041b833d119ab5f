"""The line that each request leaves in the log says what it was."""

from __future__ import annotations

import logging

import pytest

from gateway.service.interfaces import NoCapacity

URL = "/v1/images/generations"


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "gateway.api.context"]


async def test_a_request_for_pictures(client, caplog) -> None:
    caplog.set_level(logging.INFO)
    asked = {"prompt": "secret wish", "model": "tiny", "n": 2, "size": "128x64", "num_inference_steps": 8}
    answer = await client.post(URL, json=asked)
    (record,) = lines(caplog)
    message = record.getMessage()
    assert message.startswith(f'{answer.headers["x-request-id"]} "POST {URL}" 200 in ')
    said = ": tiny 128x64, 2 pictures of 8 steps; encoder 3 ms on cpu-1/ab; dit 500 ms on gpu 1; dit 500 ms on gpu 1"
    assert message.endswith(said)
    assert "secret" not in message
    about = record.about
    assert "secret" not in str(about)
    assert (about["status"], about["model"], about["size"], about["pictures"]) == (200, "tiny", "128x64", 2)
    assert [stage["stage"] for stage in about["stages"]] == ["encoder", "dit", "dit"]
    assert about["stages"][0]["queue_seconds"] == 0.001


async def test_one_that_failed(client, service, caplog) -> None:
    caplog.set_level(logging.INFO)
    service.error = NoCapacity("full", retry_after_seconds=1)
    await client.post(URL, json={"prompt": "x", "model": "tiny"})
    (record,) = lines(caplog)
    assert (record.about["status"], record.about["error"], record.about["model"]) == (
        503,
        "server_is_overloaded",
        "tiny",
    )
    assert "stages" not in record.about


async def test_any_other(client, caplog) -> None:
    caplog.set_level(logging.INFO)
    await client.get("/v1/models")
    (record,) = lines(caplog)
    assert record.getMessage().endswith(" ms")
    assert "model" not in record.about


@pytest.mark.parametrize(
    ("method", "path", "status", "level"),
    [
        ("GET", "/healthz", 200, "DEBUG"),
        ("HEAD", "/livez", 200, "DEBUG"),
        ("POST", "/healthz", 405, "INFO"),
        ("GET", "/admin/scaling", 404, "INFO"),  # no admin key is set here
        ("GET", "/v1/models", 200, "INFO"),
    ],
)
async def test_polls_are_worth_a_line_only_if_they_fail(client, caplog, method, path, status, level) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await client.request(method, path)
    (record,) = lines(caplog)
    assert (answer.status_code, record.about["status"], record.levelname) == (status, status, level)
