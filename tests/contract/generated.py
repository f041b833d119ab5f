"""Requests that schemathesis draws from the service's own OpenAPI document, and what no answer to them may be."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode

from tests.contract.test_edits import data_url

FORM, JSON = "multipart/form-data", "application/json"
GENERATIONS, EDITS = "POST /v1/images/generations", "POST /v1/images/edits"
DRAWING = ((GENERATIONS, JSON), (EDITS, FORM), (EDITS, JSON))
"""What makes pictures of what."""
ROOT = Path(__file__).parents[2]
INNARDS = re.compile(
    r'Traceback|File "|\.py\b|/(home|usr|tmp|var|root)/|\b0x[0-9a-f]{8}|\b(pydantic|msgspec|starlette)\b|'
    + re.escape(str(ROOT))
)
"""What no answer may tell of the server. An address stands for itself: sizes hold one, too (``91759210x10000000``)."""

FORBID_EACH_OTHER = frozenset(
    {"steps", "step", "cfg_scale", "guidance", "size", "width", "height", "strength", "input_fidelity"}
    | {"partial_images", "response_format", "output_compression", "background"}
)
NOT_HERE = frozenset(
    {"model", "image", "image[]", "images", "image_url", "reference_images", "mask", "lora", "loras", "image_loras"}
    | {"control", "control_image", "guider", "ip_adapter", "ip_adapter_image", "upscale", "enhance"}
)
"""Models, adapters and files that a server has are no part of its document."""


def encoded(kind: str, mode: str, size: tuple[int, int] = (32, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


PICTURES = st.sampled_from([encoded("PNG", "RGB"), encoded("JPEG", "L"), encoded("WEBP", "RGB"), encoded("PNG", "P")])
MASK = encoded("PNG", "RGBA")

schemathesis.openapi.format("binary", st.one_of(st.binary(), PICTURES, st.just(MASK)))


@st.composite
def fields_of_edits(draw: st.DrawFn, media_type: str, most: int) -> dict[str, Any]:
    """Pictures, at ``most`` so many; or one, and a mask for it."""
    pictures = draw(st.lists(PICTURES, min_size=1, max_size=most))
    masked = {"mask": MASK} if len(pictures) == 1 and draw(st.booleans()) else {}
    if media_type == FORM:
        name = "image[]" if len(pictures) > 1 or draw(st.booleans()) else "image"
        return {name: pictures if name == "image[]" else pictures[0], **masked}
    references = {"images": [{"image_url": data_url(picture)} for picture in pictures]}
    return references | {name: {"image_url": data_url(data)} for name, data in masked.items()}


@st.composite
def likely(draw: st.DrawFn, operation: Any, media_type: str, most_pictures: int, **fixed: object) -> schemathesis.Case:
    """What the document allows, without what contradicts itself or this server, and with what is ``fixed``."""
    case = draw(operation.as_strategy(GenerationMode.POSITIVE))
    left_out = FORBID_EACH_OTHER | NOT_HERE
    case.body = {name: whole(value) for name, value in case.body.items() if name not in left_out}
    if operation.label == EDITS:
        case.body |= draw(fields_of_edits(media_type, most_pictures))
    case.media_type = media_type
    case.body |= fixed
    return case


def whole(value: Any) -> Any:
    """JSON Schema takes 7.0 for an integer, the service does not."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def operations_of(document: Any, mode: GenerationMode) -> dict[str, Any]:
    """Those of which ``mode`` can draw something: where a path may be any text, no request is forbidden."""

    def can_be_wrong(raw: Mapping[str, Any]) -> bool:
        return "requestBody" in raw or any(parameter["in"] == "query" for parameter in raw.get("parameters", ()))

    found = [operation.ok() for operation in document.get_all_operations()]
    chosen = [one for one in found if mode is GenerationMode.POSITIVE or can_be_wrong(one.definition.raw)]
    return {operation.label: operation for operation in chosen}


def check(case: schemathesis.Case, sent: Mapping[str, Any], allowed: frozenset[int]) -> int:
    """The status, of an answer that is in form. Of statuses from 500 on only those ``allowed`` are."""
    answer = case.call(**sent)
    text = answer.content.decode("utf-8", "replace")
    assert answer.status_code < 500 or answer.status_code in allowed, text
    assert answer.headers["x-request-id"][0].startswith("req_")
    if answer.status_code >= 400:
        error = json.loads(text)["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert all(isinstance(error[key], str) and error[key] for key in ("message", "type", "code"))
        assert not INNARDS.search(text)
    return answer.status_code


def try_out(
    cases: st.SearchStrategy[schemathesis.Case],
    examples: int,
    sent: Mapping[str, Any] | None = None,
    allowed: frozenset[int] = frozenset(),
    *,
    links: bool = True,
) -> Counter[int]:
    """How many were answered with which status. ``sent`` are schemathesis' options of each call. Without ``links`` no
    request holds any."""
    found: Counter[int] = Counter()

    @hypothesis.settings(
        max_examples=examples, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(case=cases)
    def test(case: schemathesis.Case) -> None:
        hypothesis.assume(links or "://" not in str(case.body))
        found[check(case, sent or {}, allowed)] += 1

    test()
    return found
