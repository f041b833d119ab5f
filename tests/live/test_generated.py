"""Requests drawn from the OpenAPI document, against real stage servers."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from schemathesis import GenerationMode

from tests.contract.generated import EDITS, FORM, GENERATIONS, JSON, likely, operations_of, try_out
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


def test_what_the_document_allows_is_drawn(document: Any) -> None:
    operations = operations_of(document, GenerationMode.POSITIVE)
    drawn = {
        label: try_out(likely(operations[label], 1), EXAMPLES, SENT, IN_TIME, links=False)
        for label in (GENERATIONS, EDITS)
    }
    assert drawn[GENERATIONS][JSON, 200] >= EXAMPLES // 2
    assert min(drawn[EDITS][FORM, 200], drawn[EDITS][JSON, 200]) >= EXAMPLES // 8
