"""What is wrong with a request, as OpenAI's client raises it; what that client cannot send, as bytes."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.contract.test_errors import CONTRACT_FIELDS, MEDIA_TYPES, NO_OBJECTS, error_of
from tests.live.conftest import arguments
from tests.picture_service import MODEL

pytestmark = pytest.mark.services

URL = "/v1/images/generations"
JSON = {"content-type": "application/json"}


def told(error: openai.APIStatusError) -> tuple[int, str | None, str | None, str | None]:
    assert error.request_id.startswith("req_")
    assert error.message
    return error.status_code, error.type, error.code, error.param


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [row[1:] for row in CONTRACT_FIELDS],
    ids=[f"{number}-{str(fields)[:40]}" for number, fields, *_ in CONTRACT_FIELDS],
)
def test_bad_fields(sdk, fields, code, param):
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.images.generate(**arguments(model=MODEL) | arguments(**fields))
    assert told(bad.value) == (400, "invalid_request_error", code, param)


def test_t07_a_missing_prompt(sdk):
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.images.generate(model=MODEL, prompt=openai.omit)
    assert told(bad.value) == (400, "invalid_request_error", "missing_required_parameter", "prompt")


@pytest.mark.parametrize(("content", "code"), NO_OBJECTS)
def test_t27_bodies_that_are_no_json_object(http, content, code):
    answer = http.post(URL, content=content, headers=JSON)
    assert (answer.status_code, error_of(answer)["code"]) == (400, code)


@pytest.mark.parametrize("headers", MEDIA_TYPES)
def test_t28_media_types(http, headers):
    answer = http.post(URL, content=b'{"prompt": "x"}', headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("call", ["generate", "edit", "list", "upload"])
def test_t29_a_wrong_key(connect, call):
    sdk = connect(api_key="sk-wrong")
    calls = {
        "generate": lambda: sdk.images.generate(prompt="x"),
        "edit": lambda: sdk.images.edit(image=b"x", prompt="x"),
        "list": sdk.models.list,
        "upload": lambda: sdk.files.create(file=b"x", purpose="vision"),
    }
    with pytest.raises(openai.AuthenticationError) as wrong:
        calls[call]()
    assert told(wrong.value) == (401, "invalid_request_error", "invalid_api_key", None)


def test_t29_no_key(service):
    answer = httpx.post(f"{service.url}{URL}", json={"prompt": "x"})
    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")


def test_t30_an_unknown_model(sdk):
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.images.generate(prompt="x", model="nobody")
    assert told(unknown.value) == (404, "invalid_request_error", "model_not_found", "model")


def test_t31_unknown_places(sdk):
    with pytest.raises(openai.NotFoundError) as nowhere:
        sdk.get("/nowhere", cast_to=object)
    assert told(nowhere.value) == (404, "invalid_request_error", "unknown_url", None)
    with pytest.raises(openai.NotFoundError) as retired:
        sdk.images.create_variation(image=b"x")
    assert told(retired.value) == (404, "invalid_request_error", "unknown_url", None)
    with pytest.raises(openai.APIStatusError) as wrong:
        sdk.get("/images/generations", cast_to=object)
    assert told(wrong.value) == (405, "invalid_request_error", "method_not_allowed", None)


def test_t32_too_large_a_body(sdk, http):
    with pytest.raises(openai.APIStatusError) as large:
        sdk.images.generate(prompt="x", extra_body={"padding": "x" * 3_000_000})
    assert told(large.value) == (413, "invalid_request_error", "request_too_large", None)

    def chunks() -> Iterator[bytes]:
        for _ in range(48):
            yield b" " * 65_536

    answer = http.post(URL, content=chunks(), headers=JSON)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
