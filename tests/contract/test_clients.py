"""Real clients against a real server: OpenAI's SDK, strict, sync and async; curl; clients that go away (T44, T53)."""

from __future__ import annotations

import base64
import json
import socket
import subprocess

import openai
import pytest

from gateway.service.interfaces import NoCapacity

OPTIONS = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True}
CURL = ["curl", "--silent", "--show-error", "--max-time", "20", "-H", "content-type: application/json"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def sdk(live):
    with openai.OpenAI(base_url=f"{live}/v1", **OPTIONS) as client:
        yield client


def curl(*arguments: str, stdin: bytes = b"") -> tuple[dict, str]:
    """Body and response head."""
    done = subprocess.run([*CURL, "--include", *arguments], input=stdin, capture_output=True, check=True, timeout=30)
    head, _, body = done.stdout.rpartition(b"\r\n\r\n")
    return json.loads(body), head.decode()


def test_the_sync_sdk(sdk, service):
    raw = sdk.images.with_raw_response.generate(
        model="tiny", prompt="a red circle", n=2, size="1024x1024", quality="high", extra_body={"seed": 5, "steps": 4}
    )
    answer = raw.parse()
    assert raw.headers["x-request-id"] == answer._request_id
    assert [base64.b64decode(item.b64_json)[:8] for item in answer.data] == [PNG, PNG]
    assert (answer.size, answer.quality, answer.background, answer.usage) == ("1024x1024", "high", "opaque", None)
    assert service.requests[0].images[1].seed == 6
    assert service.requests[0].images[1].num_inference_steps == 4


async def test_the_async_sdk(live, service):
    async with openai.AsyncOpenAI(base_url=f"{live}/v1", **OPTIONS) as client:
        answer = await client.images.generate(model="gpt-image-1", prompt="x", user=None, size="auto", timeout=33)
        assert base64.b64decode(answer.data[0].b64_json).startswith(PNG)
        assert [model.id async for model in await client.models.list()][:2] == ["tiny", "org/plain"]
        assert (await client.models.retrieve("org/plain")).id == "org/plain"
    assert service.requests[0].deadline_seconds == 33


def test_a_url_through_the_sdk(sdk, live):
    answer = sdk.images.generate(model="dall-e-3", prompt="x", output_format="jpeg")
    url = answer.data[0].url
    assert url.startswith(live)
    done = subprocess.run(["curl", "-sS", "--head", url], capture_output=True, check=True, timeout=60)
    assert b"content-type: image/jpeg\r\n" in done.stdout.lower()


def test_errors_through_the_sdk(sdk, service):
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.images.generate(prompt="x", extra_body={"foo": 1})
    assert (bad.value.code, bad.value.param, bad.value.type) == ("unknown_parameter", "foo", "invalid_request_error")
    assert bad.value.request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError, match="nobody"):
        sdk.images.generate(prompt="x", model="nobody")
    with pytest.raises(openai.APIStatusError) as large:
        sdk.images.generate(prompt="x", extra_body={"padding": "x" * 3_000_000})
    assert (large.value.status_code, large.value.code) == (413, "request_too_large")
    service.error = NoCapacity("Full.", retry_after_seconds=7)
    with pytest.raises(openai.InternalServerError) as full:
        sdk.images.generate(prompt="x")
    assert (full.value.status_code, full.value.code) == (503, "server_is_overloaded")
    assert full.value.response.headers["retry-after"] == "7"


def test_the_sdk_comes_back_after_a_503(live, service):
    """Its own retry obeys ``retry-after-ms``; a second is the least that we ask for."""
    service.error = NoCapacity("Full.", retry_after_seconds=1)
    with (
        openai.OpenAI(base_url=f"{live}/v1", **OPTIONS | {"max_retries": 1}) as client,
        pytest.raises(openai.InternalServerError),
    ):
        client.images.generate(prompt="x")
    assert len(service.requests) == 2


def test_curl(live):
    body, head = curl(f"{live}/v1/images/generations", "-d", '{"prompt": "a red circle"}')
    assert head.startswith("HTTP/1.1 200")
    assert base64.b64decode(body["data"][0]["b64_json"]).startswith(PNG)


@pytest.mark.parametrize("length", [["-H", "transfer-encoding: chunked"], ["-H", "expect: 100-continue"]])
def test_curl_with_too_large_a_body(live, length):
    body, head = curl(f"{live}/v1/images/generations", *length, "--data-binary", "@-", stdin=b" " * 3_000_000)
    assert "HTTP/1.1 413" in head
    assert body["error"]["code"] == "request_too_large"


def test_a_client_that_goes_away_cancels_its_work(live, service):
    service.hang = True
    body = b'{"prompt": "x"}'
    host, port = live.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert service.started.wait(10)
        assert not service.cancelled.is_set()
    assert service.cancelled.wait(10)


def test_a_killed_curl_cancels_its_work(live, service):
    service.hang = True
    process = subprocess.Popen(
        [*CURL, f"{live}/v1/images/generations", "-d", '{"prompt": "x"}'], stdout=subprocess.DEVNULL
    )
    assert service.started.wait(10)
    process.kill()
    process.wait(10)
    assert service.cancelled.wait(10)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(live, service, caplog):
    host, port = live.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        connection.sendall(b"content-length: 100\r\n\r\n{")
    curl(f"{live}/v1/images/generations", "-d", '{"prompt": "after"}')  # the server still answers
    assert [request.images[0].prompt for request in service.requests] == ["after"]
    assert "unexpected" not in caplog.text
