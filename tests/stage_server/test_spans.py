"""A job's times as spans below the gateway's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stage_server.runtime import spans
from stage_server.runtime.events import Broke, JobKey, Published
from stage_server.runtime.phases import Phase, Phases, StepMeter
from wire.bundle import Bundle, pack
from wire.errors import Code, InputLost, Loss
from wire.params import ImageParams
from wire.to_gateway import Timings
from wire.to_stage import InputRef, Member
from wire.types import Epoch, Handle, Role

TRACE = "0af7651916cd43dd8448eb211c80319c"
MEMBER = Member(epoch=Epoch("g", 7), params=ImageParams(), traceparent=f"00-{TRACE}-b7ad6b7169203331-01")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def phases() -> Phases:
    made = Phases()
    for phase in Phase:
        made.begin(phase)
    made.end()
    made.steps = 12
    return made


def test_one_span_for_the_stage_and_one_for_each_phase(exported: InMemorySpanExporter) -> None:
    spans.record_spans(Role.DIT, MEMBER, phases(), spans.Transfers(), Published(JobKey(1), (), Timings()))
    *children, stage = exported.get_finished_spans()
    assert stage.name == "stage dit"
    assert f"{stage.context.trace_id:x}" == TRACE.lstrip("0")
    assert [child.name for child in children] == ["fetch", "wait", "compute", "publish"]
    assert all(child.parent.span_id == stage.context.span_id for child in children)
    assert children[2].attributes["steps"] == 12


def test_a_failure_marks_the_stage(exported: InMemorySpanExporter) -> None:
    broke = Broke(JobKey(1), Code.OUT_OF_MEMORY, "no", retryable=True)
    spans.record_spans(Role.DIT, MEMBER, phases(), spans.Transfers(), broke)
    stage = exported.get_finished_spans()[-1]
    assert (stage.status.is_ok, stage.status.description) == (False, "out_of_memory")


def test_transfers_are_below_the_fetch_with_bytes_and_peer(exported: InMemorySpanExporter) -> None:
    transfers = spans.Transfers()
    came, lost, given_up = Future[Bundle](), Future[Bundle](), Future[Bundle]()
    refs = [InputRef(handle=Handle(f"h{n}"), endpoint=f"tcp://[fe80::{n}]:560{n}", nbytes=n) for n in (1, 2, 3)]
    for ref, fetch in zip(refs, (came, lost, given_up), strict=True):
        transfers.watch(ref, fetch)
    came.set_result(pack({}))
    lost.set_exception(InputLost(Handle("h2"), Loss.MISSING, "no"))
    given_up.cancel()
    spans.record_spans(Role.DIT, MEMBER, phases(), transfers, Published(JobKey(1), (), Timings()))
    *three, fetch = exported.get_finished_spans()[:4]
    assert fetch.name == "fetch"
    assert all((span.name, span.parent.span_id) == ("transfer", fetch.context.span_id) for span in three)
    assert dict(three[0].attributes or {}) == {
        "network.transport": "tcp",
        "disagfusion.bytes": 1,
        "server.address": "fe80::1",
        "server.port": 5601,
    }
    assert [span.status.is_unset for span in three] == [True, False, False]


def test_steps_are_reported_at_most_twice_a_second_and_pauses_do_not_count() -> None:
    meter = StepMeter()
    meter.start(10.0)
    assert meter.step(10.2) is None
    assert meter.step(10.4) is None
    meter.paused(1.0)
    assert meter.step(11.6) == pytest.approx(0.2)
    assert meter.step(11.8) is None
    assert meter.step(12.2) == pytest.approx(0.3)
