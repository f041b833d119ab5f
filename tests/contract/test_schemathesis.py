"""Whatever the service's own OpenAPI document allows, and much that it forbids: no crash, and every refusal in form."""

from __future__ import annotations

import io
import json
import logging
import re
from typing import Any

import hypothesis
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import strategies as st
from PIL import Image

from gateway.api.app import create_app

MODES = tuple(schemathesis.GenerationMode)
INNARDS = re.compile(
    r'Traceback|File "|\.py\b|/(home|usr|tmp|work|root)/|0x[0-9a-f]{8}|\b(pydantic|msgspec|starlette)\b'
)
"""What no answer may tell of the server."""


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (32, 48)).save(buffer, "png")
    return buffer.getvalue()


schemathesis.openapi.format("binary", st.one_of(st.binary(), st.just(picture())))


@pytest.fixture
def document(service: Any, settings: Any) -> Any:
    """Of one model that does everything, small, as its pictures are drawn; links would lead out of this machine."""
    first, *others = service.served
    workflows = first.workflows + tuple(each for other in others[1:] for each in other.workflows)
    service.served = (msgspec.structs.replace(first, workflows=workflows),)
    app = create_app(service, settings.model_copy(update={"max_pixels": 128 * 128, "fetch_image_urls": False}))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def check(case: schemathesis.Case) -> None:
    answer = case.call()
    text = answer.content.decode("utf-8", "replace")
    assert answer.status_code < 500, text
    assert answer.headers["x-request-id"][0].startswith("req_")
    if answer.status_code >= 400:
        error = json.loads(text)["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert all(isinstance(error[key], str) and error[key] for key in ("message", "type", "code"))
        assert not INNARDS.search(text)


def try_out(operation: Any, mode: Any, examples: int) -> None:
    @hypothesis.settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy(mode))
    def test(case: schemathesis.Case) -> None:
        check(case)

    test()


def can_be_wrong(operation: Any) -> bool:
    """Whether there is a request that the document forbids: a path may be any text."""
    raw = operation.definition.raw
    return "requestBody" in raw or any(parameter["in"] == "query" for parameter in raw.get("parameters", ()))


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
@pytest.mark.parametrize("examples", [20, pytest.param(1000, marks=pytest.mark.nightly)])
def test_no_request_of_the_document_breaks_anything(
    document: Any, mode: Any, examples: int, caplog: pytest.LogCaptureFixture
) -> None:
    operations = [found.ok() for found in document.get_all_operations()]
    labels = {operation.label for operation in operations}
    assert {"POST /v1/images/generations", "POST /v1/images/edits", "POST /v1/files"} < labels
    assert all(set(operation.definition.raw["responses"]) == {"200", "default"} for operation in operations)
    for operation in operations:
        if mode is schemathesis.GenerationMode.POSITIVE or can_be_wrong(operation):
            try_out(operation, mode, examples)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
