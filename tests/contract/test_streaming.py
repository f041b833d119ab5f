"""Server-sent events (contract tests T39–T45): through the SDK, and byte by byte."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
from collections.abc import Callable

import httpx
import openai
import pytest

from gateway.api import streaming
from gateway.api.streaming import KEEP_ALIVE, Events, EventStream, WhereIs
from gateway.service.interfaces import Admitted, Finished, GenerationFailed, NoCapacity, Place

URL = "/v1/images/generations"
OPTIONS = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True}
PNG = b"\x89PNG\r\n\x1a\n"
FRAME = re.compile(rb"(event: [\w.]+\ndata: \{[^\n]+\}|: [^\n]+)")


@pytest.fixture
def sdk(live):
    with openai.OpenAI(base_url=f"{live}/v1", **OPTIONS) as client:
        yield client


def read(content: bytes) -> list[tuple[str, dict]]:
    """(event, data) of every event, comments left out; every frame is held against what all clients can read."""
    frames = content.split(b"\n\n")
    assert frames.pop() == b"", "the last event must end with a blank line"
    assert all(FRAME.fullmatch(frame) for frame in frames), frames
    events = [frame.split(b"\n") for frame in frames if not frame.startswith(b":")]
    return [(name[7:].decode(), json.loads(data[6:])) for name, data in events]


async def stream(client: httpx.AsyncClient, **body: object) -> tuple[list[tuple[str, dict]], httpx.Response]:
    response = await client.post(URL, json={"prompt": "x", "stream": True, **body})
    return read(response.content), response


async def test_partial_pictures_come_in_order_and_then_the_finished_one(client, service):
    events, response = await stream(client, partial_images=2, seed=5, quality="low", output_format="jpeg")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-seed"] == "5"
    assert "content-length" not in response.headers
    assert [name for name, _ in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert all(data["type"] == name for name, data in events)
    assert [data.get("partial_image_index") for _, data in events] == [0, 1, None]
    data = events[-1][1]
    assert base64.b64decode(data.pop("b64_json")).startswith(b"\xff\xd8")
    assert data.pop("created_at") > 1_700_000_000
    assert data.pop("usage")["total_tokens"] == 0
    assert data == {
        "type": "image_generation.completed",
        "size": "64x64",
        "quality": "low",
        "background": "opaque",
        "output_format": "jpeg",
        "seed": 5,
    }
    assert service.requests[0].images[0].previews == 2


@pytest.mark.parametrize("asked", [{}, {"partial_images": 0}, {"partial_images": None}])
async def test_without_partial_images_only_the_finished_one_comes(client, asked):
    events, _ = await stream(client, **asked)
    assert [name for name, _ in events] == ["image_generation.completed"]


async def test_every_picture_of_several_is_completed(client):
    events, _ = await stream(client, n=2, partial_images=1, seed=3)
    told = [(name.partition(".")[2], data["image_index"], data.get("seed")) for name, data in events]
    assert told == [("partial_image", 0, None), ("completed", 0, 3), ("partial_image", 1, None), ("completed", 1, 4)]


def test_the_sdk_reads_it_strictly(sdk):
    events = list(sdk.images.generate(model="tiny", prompt="x", stream=True, partial_images=2))
    assert [event.type.partition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert base64.b64decode(events[2].b64_json).startswith(PNG)


async def test_the_async_sdk_reads_it_strictly(live):
    async with openai.AsyncOpenAI(base_url=f"{live}/v1", **OPTIONS) as client:
        events = [event async for event in await client.images.generate(model="tiny", prompt="x", stream=True)]
    assert [event.type for event in events] == ["image_generation.completed"]


async def test_what_is_wrong_before_it_begins_is_an_ordinary_answer(client, service):
    response = await client.post(URL, json={"prompt": "x", "stream": True, "foo": 1})
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
    service.error = NoCapacity("Full.", retry_after_seconds=7)
    response = await client.post(URL, json={"prompt": "x", "stream": True})
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert response.json()["error"]["code"] == "server_is_overloaded"


def test_a_failure_on_the_way_is_a_nested_error_that_the_sdk_raises(sdk, service):
    service.late_error = GenerationFailed("/secret/path")
    events = []
    with pytest.raises(openai.APIError, match="every attempt failed") as failure:
        events.extend(sdk.images.generate(prompt="x", n=2, stream=True))
    assert (failure.value.code, failure.value.type) == ("server_error", "server_error")


async def test_a_defect_on_the_way_tells_nothing_of_itself(client, service, caplog):
    service.late_error = RuntimeError("/secret/path")
    events, _ = await stream(client, n=2)
    assert [name for name, _ in events] == ["image_generation.completed", "error"]
    assert events[1][1]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(events)
    assert "/secret/path" in caplog.text


def test_a_client_that_leaves_a_stream_cancels_its_work(live, service, caplog):
    service.hang = service.is_admitted = True
    body = b'{"prompt": "x", "stream": true}'
    host, port = live.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
        assert not service.cancelled.is_set()
    assert service.cancelled.wait(10)
    assert "Traceback" not in caplog.text


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is short."""
    monkeypatch.setattr(streaming, "PLACE_SECONDS", 0.005)
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.01)


async def silent(enough_said: Callable[[list[bytes]], bool], where_is: WhereIs) -> list[bytes]:
    """What a stream says of a request that is admitted, and then without news until ``enough_said``."""
    sent: list[bytes] = []
    enough = asyncio.Event()

    async def send(message: dict) -> None:
        sent.append(message.get("body", b""))
        if enough_said(sent):
            enough.set()

    async def work(listener):
        listener(Admitted(1.0))
        await enough.wait()
        return Finished((), ())

    async def receive() -> dict:
        await asyncio.Event().wait()
        return {}

    response = EventStream(work, Events(None), {}, where_is)
    await asyncio.wait_for(response({"state": {"request_id": "r"}}, receive, send), 10)
    assert all(FRAME.fullmatch(frame.removesuffix(b"\n\n")) for frame in sent[1:-1]), sent
    return sent[1:]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("place", [None, Place(None, 4.0)], ids=["unknown", "at work"])
async def test_silence_is_filled_with_comments(place):
    """Twice the limit of silence: two comments, and nothing that a client would take for an event."""
    said = await silent(lambda sent: sent.count(KEEP_ALIVE) == 2, lambda: place)
    assert said == [b": admitted, predicted 1.00 s\n\n", KEEP_ALIVE, KEEP_ALIVE, b""]


@pytest.mark.usefixtures("impatient")
async def test_a_request_that_waits_is_told_its_place():
    places = [Place(12, 61.26), Place(1, 7.0), Place(0, 3.5), None]
    asked = iter(places)
    said = await silent(lambda sent: KEEP_ALIVE in sent, lambda: next(asked, None))
    assert said == [
        b": admitted, predicted 1.00 s\n\n",
        b": waiting, 12 ahead, about 61.3 s left\n\n",
        b": waiting, 1 ahead, about 7.0 s left\n\n",
        b": waiting, 0 ahead, about 3.5 s left\n\n",
        KEEP_ALIVE,
        b"",
    ]


async def test_a_refusal_keeps_its_status_however_long_it_takes(monkeypatch):
    """Nothing is said, nor asked, before the request is admitted."""

    async def refused(_listener):
        for _ in range(20):  # each turn of the loop is another silence
            await asyncio.sleep(0)
        raise NoCapacity("Full.", retry_after_seconds=7)

    async def receive() -> dict:
        await asyncio.Event().wait()
        return {}

    async def send(message: dict) -> None:
        pytest.fail(f"said {message}")

    monkeypatch.setattr(streaming, "PLACE_SECONDS", 0)
    response = EventStream(refused, Events(None), {}, lambda: pytest.fail("asked"))
    with pytest.raises(NoCapacity):
        await response({"state": {"request_id": "r"}}, receive, send)


@pytest.mark.usefixtures("impatient")
def test_the_sdk_reads_a_stream_that_waits(sdk, service):
    """It is the place of the very request that the stream is of."""
    service.waiting = Place(2, 5.0)
    with sdk.images.with_streaming_response.generate(model="tiny", prompt="x", stream=True) as response:
        lines = list(response.iter_lines())
    assert ": waiting, 2 ahead, about 5.0 s left" in lines
    assert [event.type for event in sdk.images.generate(model="tiny", prompt="x", stream=True)] == [
        "image_generation.completed"
    ]
