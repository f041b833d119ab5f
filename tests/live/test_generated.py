"""Requests drawn from the OpenAPI document, against real stage servers."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from schemathesis import GenerationMode

from tests.contract.generated import DRAWING, EDITS, GENERATIONS, likely, operations_of, try_out
from tests.picture_service import KEY, PictureService

pytestmark = pytest.mark.nightly

EXAMPLES = 60
HEADERS = {"authorization": f"Bearer {KEY}", "x-request-timeout": "20"}  # as some ask for minutes of work
SENT = {"headers": HEADERS, "timeout": 60}
IN_TIME = frozenset({503, 504})
"""What a client may see that gives so little time."""


@pytest.fixture
def document(service: PictureService) -> Any:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
def test_no_request_of_the_document_breaks_anything(document: Any, mode: GenerationMode) -> None:
    for label in (GENERATIONS, EDITS, "POST /v1/files"):
        operation = operations_of(document, mode)[label]
        try_out(operation.as_strategy(mode), EXAMPLES, SENT, IN_TIME, links=False)


@pytest.mark.parametrize(("label", "media_type"), DRAWING)
def test_what_the_document_allows_is_drawn(document: Any, label: str, media_type: str) -> None:
    operation = operations_of(document, GenerationMode.POSITIVE)[label]
    cases = likely(operation, media_type, 1, n=1, num_inference_steps=4)
    found = try_out(cases, EXAMPLES, SENT, IN_TIME, links=False)
    assert found[200] >= EXAMPLES // 2, found
