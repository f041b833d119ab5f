"""Whatever the service's own OpenAPI document allows, and much that it forbids: no crash, and every refusal in form."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
import schemathesis
from schemathesis import GenerationMode

from gateway.api.app import create_app
from tests.contract.generated import DRAWING, EDITS, GENERATIONS, likely, operations_of, try_out


@pytest.fixture
def document(service: Any, settings: Any, decoders: Any) -> Any:
    """Of one model that does everything, small, as its pictures are drawn; links would lead out of this machine."""
    first, *others = service.served
    workflows = first.workflows + tuple(each for other in others[1:] for each in other.workflows)
    service.served = (msgspec.structs.replace(first, workflows=workflows),)
    app = create_app(
        service, settings.model_copy(update={"max_pixels": 128 * 128, "fetch_image_urls": False}), decoders=decoders
    )
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("examples", [20, pytest.param(1000, marks=pytest.mark.nightly)])
def test_no_request_of_the_document_breaks_anything(
    document: Any, mode: GenerationMode, examples: int, caplog: pytest.LogCaptureFixture
) -> None:
    operations = operations_of(document, mode)
    assert {GENERATIONS, EDITS, "POST /v1/files"} < operations.keys()
    assert all(set(operation.definition.raw["responses"]) == {"200", "default"} for operation in operations.values())
    for operation in operations.values():
        try_out(operation.as_strategy(mode), examples)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(("label", "media_type"), DRAWING)
@pytest.mark.parametrize("examples", [20, pytest.param(500, marks=pytest.mark.nightly)])
def test_what_the_document_allows_is_drawn(
    document: Any, label: str, media_type: str, examples: int, caplog: pytest.LogCaptureFixture
) -> None:
    operation = operations_of(document, GenerationMode.POSITIVE)[label]
    found = try_out(likely(operation, media_type, 4), examples)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert found[200] >= examples // 2, found
