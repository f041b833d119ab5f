"""What every other request gets: OpenAI's envelope, with the documented code (T7–T15, T17, T19–T21, T24–T36)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.service.interfaces import (
    DeadlineExceeded,
    FaultyModel,
    GenerationFailed,
    ModelNotFound,
    NoCapacity,
    OutOfDeviceMemory,
    UnsupportedRequest,
)

URL = "/v1/images/generations"
OK = {"prompt": "a red circle"}


def error_of(response: httpx.Response, kind: str = "invalid_request_error") -> dict:
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert isinstance(error["code"], str)
    assert error["type"] == kind
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    return error


CONTRACT_FIELDS = [
    ("t08", {"prompt": ""}, "string_below_min_length", "prompt"),
    ("t09", {"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
    ("t10", {"prompt": 5}, "invalid_type", "prompt"),
    ("t11", {"n": 0}, "integer_below_min_value", "n"),
    ("t12", {"n": 11}, "integer_above_max_value", "n"),
    ("t13", {"n": "2"}, "invalid_type", "n"),
    ("t13", {"n": True}, "invalid_type", "n"),
    ("t13", {"n": 1.5}, "invalid_type", "n"),
    ("t14", {"size": "banana"}, "invalid_value", "size"),
    ("t14", {"size": "1024x"}, "invalid_value", "size"),
    ("t14", {"size": "1024X1024"}, "invalid_value", "size"),
    ("t14", {"size": "0x0"}, "invalid_value", "size"),
    ("t15", {"size": "1000x1000"}, "invalid_value", "size"),
    ("t17", {"quality": "ultra"}, "invalid_value", "quality"),
    ("t19", {"output_compression": 101, "output_format": "jpeg"}, "integer_above_max_value", "output_compression"),
    ("t19", {"output_compression": 50}, "invalid_value", "output_compression"),
    ("t20", {"background": "transparent", "output_format": "jpeg"}, "invalid_value", "background"),
    ("t21", {"foo": 1}, "unknown_parameter", "foo"),
    ("t24", {"steps": 3, "num_inference_steps": 4}, "invalid_value", "steps"),
    ("t25", {"num_inference_steps": 0}, "integer_below_min_value", "num_inference_steps"),
    ("t25", {"num_inference_steps": 100_000}, "integer_above_max_value", "num_inference_steps"),
    ("t40", {"stream": True, "partial_images": 4}, "integer_above_max_value", "partial_images"),
]
"""With the number of the contract's case (``tests/live/contract.py``), which the live suite sends again."""

BAD_FIELDS = [
    *(row[1:] for row in CONTRACT_FIELDS),
    ({"prompt": None}, "invalid_type", "prompt"),
    ({"prompt": ["x"]}, "invalid_type", "prompt"),
    ({"model": 3}, "invalid_type", "model"),
    ({"size": "64x64\n"}, "invalid_value", "size"),
    ({"size": "٦٤x٦٤"}, "invalid_value", "size"),
    ({"size": "4096x4096"}, "invalid_value", "size"),
    ({"size": "1024x64"}, "invalid_value", "size"),
    ({"size": 1024}, "invalid_type", "size"),
    ({"size": "320x320", "model": "org/plain"}, "invalid_value", "size"),
    ({"size": "64x64", "width": 128, "height": 64}, "invalid_value", "size"),
    ({"width": 64}, "missing_required_parameter", "height"),
    ({"height": 64}, "missing_required_parameter", "width"),
    ({"width": 0, "height": 64}, "integer_below_min_value", "width"),
    ({"style": "loud"}, "invalid_value", "style"),
    ({"moderation": "off"}, "invalid_value", "moderation"),
    ({"response_format": "file"}, "invalid_value", "response_format"),
    ({"output_format": "gif"}, "invalid_value", "output_format"),
    ({"output_compression": -1, "output_format": "jpeg"}, "integer_below_min_value", "output_compression"),
    ({"background": "transparent"}, "unsupported_value", "background"),
    ({"seed": -2}, "integer_below_min_value", "seed"),
    ({"seed": 2**63}, "integer_above_max_value", "seed"),
    ({"seed": 1.5}, "invalid_type", "seed"),
    ({"guidance_scale": 1000}, "decimal_above_max_value", "guidance_scale"),
    ({"guidance_scale": -0.5}, "decimal_below_min_value", "guidance_scale"),
    ({"guidance_scale": "3"}, "invalid_type", "guidance_scale"),
    ({"cfg_scale": 3, "guidance": 4.5}, "invalid_value", "guidance"),
    ({"user": 5}, "invalid_type", "user"),
    ({"partial_images": 1}, "invalid_value", "partial_images"),
    ({"stream": True, "response_format": "url"}, "invalid_value", "response_format"),
    ({"stream": "yes"}, "invalid_type", "stream"),
    ({"partial_images": 4}, "integer_above_max_value", "partial_images"),
    ({"foo": None}, "unknown_parameter", "foo"),
    ({"lora": [{"path": "a", "scale": 1}]}, "missing_required_parameter", "lora.0.name"),
    ({"true_cfg_scale": 4.0}, "unsupported_parameter", "true_cfg_scale"),
    ({"model": "org/plain", "negative_prompt": "blur"}, "unsupported_parameter", "negative_prompt"),
    ({"model": "org/plain", "cfg_scale": 3}, "unsupported_parameter", "cfg_scale"),
    ({"model": "editor"}, "unsupported_value", "model"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_FIELDS, ids=lambda value: str(value)[:50])
async def test_bad_fields(client, service, fields, code, param):
    response = await client.post(URL, json=OK | fields)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert param in error["message"].lower()
    assert not service.requests


async def test_a_missing_prompt(client):
    error = error_of(await client.post(URL, json={"model": "tiny"}))
    assert (error["code"], error["param"]) == ("missing_required_parameter", "prompt")


async def test_a_lower_limit_of_images(connect):
    error = error_of(await connect(max_n=2).post(URL, json=OK | {"n": 3}))
    assert error["code"] == "integer_above_max_value"
    assert "2" in error["message"]


async def test_a_size_between_multiples_names_its_neighbours(client):
    error = error_of(await client.post(URL, json=OK | {"size": "1000x1030"}))
    assert "multiples of 16" in error["message"]
    assert "992x1024 or 1008x1040" in error["message"]


NO_OBJECTS = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"[" * 50_000, "invalid_json"),
    (b'{"prompt": "\xff"}', "invalid_json"),
    (b'{"prompt": "\\ud800"}', "invalid_json"),
    (b"[]", "invalid_type"),
    (b"null", "invalid_type"),
    (b'"prompt"', "invalid_type"),
]


@pytest.mark.parametrize(("content", "code"), NO_OBJECTS)
async def test_bodies_that_are_no_json_object(client, content, code):
    response = await client.post(URL, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["code"] == code


MEDIA_TYPES = [
    {"content-type": "text/plain"},
    {"content-type": "application/x-www-form-urlencoded"},
    {},
    {"content-type": "application/json", "content-encoding": "gzip"},
]


@pytest.mark.parametrize("headers", MEDIA_TYPES)
async def test_media_types(client, headers):
    response = await client.post(URL, content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


async def test_too_large_a_body(client):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    for content in (b" " * (65 << 10), chunks()):
        response = await client.post(URL, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"


async def test_a_body_that_never_ends(connect):
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    client = connect(body_timeout_seconds=0.05)
    response = await client.post(URL, content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 408
    assert error_of(response)["code"] == "request_timeout"


async def test_unknown_places(client):
    response = await client.post(URL, json=OK | {"model": "nobody"})
    assert response.status_code == 404
    error = error_of(response)
    assert (error["code"], error["param"]) == ("model_not_found", "model")

    response = await client.get("/v1/nowhere")
    assert response.status_code == 404
    assert error_of(response)["code"] == "unknown_url"

    assert (await client.post(f"{URL}/", json=OK)).status_code == 404

    response = await client.get(URL)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert error_of(response)["code"] == "method_not_allowed"


async def test_before_any_server_has_come_clients_are_asked_to_wait(client, service):
    service.served = ()
    response = await client.post(URL, json=OK | {"model": "tiny"})
    assert response.status_code == 503
    assert error_of(response, "service_unavailable_error")["code"] == "server_is_overloaded"
    assert 1 <= int(response.headers["retry-after"]) <= 60


@pytest.mark.parametrize(("asked", "told"), [(0.0, 1), (2.1, 3), (60.0, 60), (500.0, 60)])
async def test_a_full_server(client, service, asked, told):
    service.error = NoCapacity("The queue is full.", retry_after_seconds=asked, predicted_wait_seconds=500.0)
    response = await client.post(URL, json=OK)
    assert response.status_code == 503
    assert error_of(response, "service_unavailable_error") == {
        "message": "The queue is full.",
        "type": "service_unavailable_error",
        "param": None,
        "code": "server_is_overloaded",
    }
    assert response.headers["retry-after"] == str(told)
    assert response.headers["retry-after-ms"] == str(told * 1000)
    assert response.headers["x-predicted-wait-ms"] == "500000"


@pytest.mark.parametrize(
    ("raised", "status", "kind", "code"),
    [
        (ModelNotFound("The model 'tiny' is gone."), 404, "invalid_request_error", "model_not_found"),
        (UnsupportedRequest("No.", param="size"), 400, "invalid_request_error", "unsupported_value"),
        (DeadlineExceeded("Too late."), 504, "server_error", "timeout"),
        (OutOfDeviceMemory("/secret"), 500, "server_error", "out_of_memory"),
        (FaultyModel("The dit's latents hold NaN."), 500, "server_error", "server_error"),
        (GenerationFailed("at /secret/path.py"), 500, "server_error", "server_error"),
        (RuntimeError("at /secret/path.py"), 500, "server_error", "server_error"),
    ],
)
async def test_failures_of_the_pipeline(client, service, caplog, raised, status, kind, code):
    service.error = raised
    response = await client.post(URL, json=OK)
    error = error_of(response, kind)
    assert (response.status_code, error["code"]) == (status, code)
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    is_hopeless = isinstance(raised, OutOfDeviceMemory | FaultyModel)
    assert (response.headers.get("x-should-retry") == "false") is is_hopeless
    if isinstance(raised, FaultyModel):
        assert error["message"] == str(raised)
    assert any(response.headers["x-request-id"] in record.getMessage() for record in caplog.records)


async def test_a_service_that_forgets_the_deadline_is_ended(client, service):
    service.hang = True
    response = await client.post(URL, json=OK, headers={"x-request-timeout": "0.05"})
    assert response.status_code == 504
    assert error_of(response, "server_error")["code"] == "timeout"
    assert service.cancelled.is_set()


async def test_request_ids_are_unique_and_logged(client, caplog):
    caplog.set_level(logging.INFO)
    responses = [await client.get("/nope%0Aforged"), await client.post(URL, json=OK)]
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", value) for value in ids)
    assert all(any(value in line for line in caplog.messages) for value in ids)
    assert not any("\n" in line for line in caplog.messages)
    assert not any("red circle" in line for line in caplog.messages)


async def test_prompts_are_logged_when_asked_for(connect, caplog):
    caplog.set_level(logging.INFO)
    await connect(log_prompts=True).post(URL, json=OK)
    assert any("red circle" in line for line in caplog.messages)
