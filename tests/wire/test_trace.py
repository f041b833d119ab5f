from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from wire.trace import extract, inject, pointless


def test_the_parent_survives_the_crossing():
    span = SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    text = inject(trace.set_span_in_context(NonRecordingSpan(span)))
    assert text == f"00-{0xA1:032x}-{0xB2:016x}-01"

    parent = trace.get_current_span(extract(text)).get_span_context()
    assert (parent.trace_id, parent.span_id, parent.is_remote) == (0xA1, 0xB2, True)


def test_nothing_to_inject_gives_an_empty_text():
    assert inject() == ""


@pytest.mark.parametrize(
    "text", ["", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-" + "1" * 60, "\x00" * 99]
)
def test_garbage_means_no_parent(text):
    assert not trace.get_current_span(extract(text)).get_span_context().is_valid


def test_spans_are_pointless_without_an_sdk_and_a_parent() -> None:
    ours = trace.get_tracer("ours")
    parent = extract("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert pointless(ours)
    assert not pointless(ours, parent)
    assert not pointless(TracerProvider().get_tracer("ours"))
