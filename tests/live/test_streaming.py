"""Server-sent events, through OpenAI's client and byte by byte."""

from __future__ import annotations

import openai
import pytest

from tests.contract.test_streaming import read
from tests.live.conftest import CRASH_SEED, SIDE, arguments
from tests.live.test_generations import opened
from tests.live.test_refusals import told
from tests.picture_service import MODEL

pytestmark = pytest.mark.services

URL = "/v1/images/generations"
BODY = {"model": MODEL, "prompt": "a red circle", "stream": True}


def kinds(events) -> list[str]:
    return [event.type.removeprefix("image_generation.") for event in events]


def test_t39_partial_pictures_and_then_the_finished_one(sdk):
    fields = arguments(model=MODEL, seed=7, steps=12)
    *partials, last = sdk.images.generate(**fields, stream=True, partial_images=2)
    assert kinds(partials) == ["partial_image"] * len(partials)
    assert kinds([last]) == ["completed"]
    assert 1 <= len(partials) <= 2
    indices = [event.partial_image_index for event in partials]
    assert indices == sorted(set(indices))
    assert set(indices) <= {0, 1}
    assert {opened(event.b64_json).size for event in (*partials, last)} == {(SIDE, SIDE)}
    assert last.b64_json == sdk.images.generate(**fields).data[0].b64_json
    assert last.b64_json not in [event.b64_json for event in partials]


def test_t39_t43_the_bytes_of_a_stream(http):
    answer = http.post(URL, json=BODY | {"partial_images": 2, "steps": 12})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    events = read(answer.content)
    assert [name for name, _ in events] == [data["type"] for _, data in events]


@pytest.mark.parametrize("asked", [{}, {"partial_images": 0}, {"partial_images": None}])
def test_t40_without_partial_pictures(sdk, asked):
    assert kinds(sdk.images.generate(**arguments(), stream=True, **asked)) == ["completed"]


def test_t41_what_is_wrong_before_it_begins(sdk):
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.images.generate(**arguments(foo=1), stream=True)
    assert told(bad.value) == (400, "invalid_request_error", "unknown_parameter", "foo")
    assert bad.value.response.headers["content-type"] == "application/json"


def test_t42_a_failure_on_the_way(sdk, http):
    """The second of two pictures cannot be made."""
    stream = sdk.images.generate(**arguments(seed=CRASH_SEED - 1, n=2), stream=True)
    with pytest.raises(openai.APIError) as failure:
        list(stream)
    assert (failure.value.code, failure.value.type) == ("server_error", "server_error")
    answer = http.post(URL, json=BODY | {"seed": CRASH_SEED - 1, "n": 2})
    (*_, (name, data)) = read(answer.content)
    assert (answer.status_code, name) == (200, "error")
    assert list(data) == ["error"]
    assert "secret" not in answer.text


def test_t43_silence_is_filled_with_comments(sdk, http, service):
    """The dit hangs until a comment has come, then both streams end well."""
    dit = service.processes["dit"]
    with http.stream("POST", URL, json=BODY) as answer:
        chunks = answer.iter_raw()
        content = b""
        with dit.frozen():
            stream = sdk.images.generate(**arguments(), stream=True)
            while b": keep-alive\n\n" not in content:
                content += next(chunks)
        content += b"".join(chunks)
    assert [name for name, _ in read(content)] == ["image_generation.completed"]
    assert kinds(stream) == ["completed"]


def test_t45_two_pictures(sdk):
    events = list(sdk.images.generate(**arguments(n=2, seed=3), stream=True))
    assert kinds(events) == ["completed"] * 2
    pictures = {event.model_extra["image_index"]: event.b64_json for event in events}
    assert [pictures[0], pictures[1]] == [item.b64_json for item in sdk.images.generate(**arguments(n=2, seed=3)).data]
