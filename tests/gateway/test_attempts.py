"""Attempts as spans: one per stage job below the request's, with the time in the queue below that."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.service import attempts, graph
from gateway.service.attempts import Attempts, Record
from gateway.service.interfaces import Took
from wire.to_gateway import StageDone, Timings
from wire.types import Epoch, JobId, ServerId

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = (int(part, 16) for part in PARENT.split("-")[1:3])
A, B = ServerId("a/1"), ServerId("b/1")


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(attempts, "tracer", provider.get_tracer("test"))
    return exporter.get_finished_spans


@pytest.fixture
def record(request_for, model) -> Record:
    return Record(graph.build(request_for(), model(), 100.0), PARENT, arrived=10.0)


def begin(under_way, record, name, counter, server, now):
    job = record.graph.jobs[JobId(f"r/{name}")]
    return under_way.begin(Epoch("g", counter), record, job, server, now)


def test_an_attempt_is_a_span_whose_context_goes_to_the_stage_server(spans, record):
    under_way = Attempts()
    traceparent = begin(under_way, record, "encoder", 1, A, now=12.5)
    under_way.done(A, StageDone(epoch=Epoch("g", 1), outputs=(), timings=Timings(compute=1.0)), now=14.0)
    queue, stage = spans()
    assert (stage.name, queue.name) == ("stage encoder", "queue")
    assert (stage.context.trace_id, stage.parent.span_id) == (TRACE, SPAN)
    assert queue.parent.span_id == stage.context.span_id
    assert int(traceparent.split("-")[2], 16) == stage.context.span_id
    assert stage.attributes["disagfusion.queue_seconds"] == 2.5
    assert (queue.end_time - queue.start_time) / 1e9 == pytest.approx(2.5)


def test_queues_are_counted_from_when_the_inputs_were_there(record):
    under_way = Attempts()
    begin(under_way, record, "encoder", 1, A, 11.0)
    under_way.done(
        B, StageDone(epoch=Epoch("g", 1), outputs=(), timings=Timings(wait=5.0)), 12.0
    )  # it is not this server's attempt
    under_way.done(A, StageDone(epoch=Epoch("g", 1), outputs=(), timings=Timings()), 13.0)
    begin(under_way, record, "dit.0", 2, A, 13.25)
    under_way.done(A, StageDone(epoch=Epoch("g", 2), outputs=(), timings=Timings(wait=0.5)), 14.0)
    encoder, dit = record.stages()
    assert (encoder.queue_seconds, dit.queue_seconds) == (1.0, 0.75)
    assert dit.image == 0


def test_the_attempts_of_a_lost_server_end_as_errors_and_are_counted(spans, record):
    under_way = Attempts()
    begin(under_way, record, "encoder", 1, A, 11.0)
    under_way.server_lost(A)
    begin(under_way, record, "encoder", 2, B, 12.0)
    under_way.done(A, StageDone(epoch=Epoch("g", 1), outputs=(), timings=Timings()), 13.0)
    assert record.stages() == (), "late words of a lost server are not believed"
    under_way.done(B, StageDone(epoch=Epoch("g", 2), outputs=(), timings=Timings()), 13.0)
    assert (record.stages()[0].attempts, record.stages()[0].server) == (2, "b")
    lost = next(span for span in spans() if span.name == "stage encoder")
    assert lost.status.description == "server lost"


def test_without_tracing_nothing_is_sent_along(request_for, model):
    record = Record(graph.build(request_for(), model(), 100.0), "", arrived=10.0)
    assert begin(Attempts(), record, "encoder", 1, A, 11.0) == ""


def test_a_job_that_runs_again_for_a_lost_output_is_told_of_once(record):
    under_way = Attempts()
    begin(under_way, record, "encoder", 1, A, 11.0)
    first = under_way.done(A, StageDone(epoch=Epoch("g", 1), outputs=(), timings=Timings(compute=3.0, batch=2)), 12.0)
    assert first == Took("encoder", 1.5), "a batch's members share its time"
    begin(under_way, record, "encoder", 2, B, 13.0)
    assert under_way.done(B, StageDone(epoch=Epoch("g", 2), outputs=(), timings=Timings(compute=3.0)), 14.0) is None


def test_unfinished_attempts_took_the_device_but_for_their_pauses(record, request_for, model):
    under_way = Attempts()
    other = Record(graph.build(request_for(request_id="other"), model(), 100.0), "", arrived=10.0)
    begin(under_way, record, "encoder", 1, A, 11.0)
    assert under_way.unfinished(record, 12.0) == [], "it waits for the device"
    under_way.started(B, Epoch("g", 1), 11.5)  # not this server's attempt
    under_way.started(A, Epoch("g", 1), 12.0)
    under_way.paused(A, Epoch("g", 1), 15.0)
    assert under_way.unfinished(record, 20.0) == [Took("encoder", 3.0)]
    under_way.started(A, Epoch("g", 1), 20.0)
    assert under_way.unfinished(record, 21.5) == [Took("encoder", 4.5)]
    assert under_way.unfinished(other, 21.5) == []
