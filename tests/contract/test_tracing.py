"""One trace per request (T51): what arrives is continued, spans say what happened and not what was asked for."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from gateway.api import context, serving
from gateway.service.interfaces import NoCapacity

URL = "/v1/images/generations"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in (context, serving):
        monkeypatch.setattr(module, "tracer", provider.get_tracer("test"))
    return exporter


async def test_without_an_sdk_the_context_passes_through(client, service):
    await client.post(URL, json={"prompt": "x"}, headers={"traceparent": PARENT})
    assert service.requests[0].traceparent.split("-")[1] == TRACE


async def test_without_a_parent_and_an_sdk_there_is_nothing_to_pass(client, service):
    await client.post(URL, json={"prompt": "x"})
    assert service.requests[0].traceparent == ""


async def test_spans_of_a_request(client, service, spans):
    response = await client.post(
        URL, json={"prompt": "secret wish", "n": 2, "seed": 3, "model": "gpt-image-1"}, headers={"traceparent": PARENT}
    )
    inner, outer = spans.get_finished_spans()
    assert outer.name == "POST /v1/images/generations"
    assert outer.kind is SpanKind.SERVER
    assert f"{outer.parent.span_id:016x}" == PARENT.split("-")[2]
    assert outer.attributes["http.route"] == URL
    assert outer.attributes["http.response.status_code"] == 200
    assert outer.attributes["disagfusion.request_id"] == response.headers["x-request-id"]

    assert inner.name == "generate_content tiny"
    assert inner.parent.span_id == outer.context.span_id
    assert dict(inner.attributes) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.provider.name": "disagfusion",
        "gen_ai.request.model": "gpt-image-1",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.seed": 3,
    }
    assert service.requests[0].traceparent == f"00-{TRACE}-{inner.context.span_id:016x}-01"
    assert "secret wish" not in "".join(span.to_json() for span in (inner, outer))


async def test_errors_are_named_in_spans(client, service, spans):
    await client.post(URL, json={"prompt": "x", "foo": 1})
    service.error = NoCapacity("Full.", retry_after_seconds=1)
    await client.post(URL, json={"prompt": "x"})
    refused, _, full = spans.get_finished_spans()
    assert refused.attributes["error.type"] == "unknown_parameter"
    assert refused.status.is_unset
    assert full.attributes["error.type"] == "server_is_overloaded"
    assert not full.status.is_ok
    assert not full.status.is_unset
