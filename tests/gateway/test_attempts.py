"""Attempts as spans: one per stage job below the request's, with the time in the queue below that."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.service import attempts, graph
from gateway.service.attempts import Attempts, Record
from gateway.service.interfaces import Took
from wire.to_gateway import HandedOver, Output, StageDone, Timings
from wire.types import Epoch, Handle, JobId, ServerId

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


def begin(under_way, record, name, counter, server, now, **fields):
    job = record.graph.jobs[JobId(f"r/{name}")]
    return under_way.begin(Epoch("g", counter), record, job, server, now, **fields)


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
    under_way.server_lost(A, 11.5)
    begin(under_way, record, "encoder", 2, B, 12.0)
    under_way.done(A, StageDone(epoch=Epoch("g", 1), outputs=(), timings=Timings()), 13.0)
    assert record.stages() == (), "late words of a lost server are not believed"
    under_way.done(B, StageDone(epoch=Epoch("g", 2), outputs=(), timings=Timings()), 13.0)
    assert (record.stages()[0].attempts, record.stages()[0].server) == (2, "b")
    lost = next(span for span in spans() if span.name == "stage encoder")
    assert lost.status.description == "server lost"


def test_attempts_that_compute_together_name_each_other_once(spans, record):
    under_way = Attempts()
    for counter, name in enumerate(("encoder", "dit.0", "decoder.0"), 1):
        begin(under_way, record, name, counter, A, 11.0, share=name != "decoder.0")
        under_way.started(A, Epoch("g", counter), 11.0)
    under_way.paused(A, Epoch("g", 2), 11.5)
    under_way.started(A, Epoch("g", 2), 11.6)
    under_way.server_lost(A, 12.0)
    encoder, dit, decoder = (span for span in spans() if span.name.startswith("stage"))
    ((to_dit,), (to_encoder,)) = encoder.links, dit.links
    assert (to_dit.context.span_id, to_encoder.context.span_id) == (dit.context.span_id, encoder.context.span_id)
    assert dict(to_dit.attributes) == {"disagfusion.link": "computed together"}
    assert not decoder.links, "it has the device alone"


def test_a_kept_encoding_is_a_span_that_names_the_attempt_which_made_it(spans, record):
    other = "00-00000000000000000000000000000abc-0000000000000def-01"
    attempts.note_kept(record, A, other)
    attempts.note_kept(record, A, "")
    linked, unlinked = spans()
    assert (linked.name, linked.context.trace_id, linked.parent.span_id) == ("stage encoder", TRACE, SPAN)
    assert dict(linked.attributes) == {"disagfusion.server": "a", "disagfusion.kept": True}
    (link,) = linked.links
    assert (link.context.trace_id, link.context.span_id) == (0xABC, 0xDEF)
    assert not unlinked.links, "it was made before tracing, or for a request that is not traced"


def test_without_tracing_nothing_is_sent_along(request_for, model):
    record = Record(graph.build(request_for(), model(), 100.0), "", arrived=10.0)
    assert begin(Attempts(), record, "encoder", 1, A, 11.0) == ""


def test_a_job_that_runs_again_for_a_lost_output_is_told_of_once(record):
    under_way = Attempts()
    begin(under_way, record, "encoder", 1, A, 11.0)
    first = under_way.done(A, StageDone(epoch=Epoch("g", 1), outputs=(), timings=Timings(compute=3.0, batch=2)), 12.0)
    assert first == Took("encoder", 1.5), "those that computed together share that time"
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


def test_unfinished_attempts_that_computed_together_share_the_device(record):
    under_way = Attempts()
    for counter, (job, share) in enumerate([("dit.0", True), ("decoder.0", True), ("encoder", False)], 1):
        begin(under_way, record, job, counter, A, 10.0, share=share)
    under_way.started(A, Epoch("g", 1), 10.0)
    under_way.started(A, Epoch("g", 2), 12.0)  # 2 s alone, then together
    under_way.failed(A, Epoch("g", 2), "cancelled", 16.0)
    assert under_way.unfinished(record, 17.0) == [Took("dit", 2.0 + 2.0 + 1.0)]
    under_way.paused(A, Epoch("g", 1), 17.0)
    under_way.started(A, Epoch("g", 3), 17.0)
    assert under_way.unfinished(record, 20.0) == [Took("dit", 5.0), Took("encoder", 3.0)]


LATENTS = Output(port="dit", handle=Handle("latents"), nbytes=1)


def hand_over(under_way, record, output):
    begin(under_way, record, "dit.0", 1, A, 11.0)
    timings = Timings(compute=3.0, batch=2, steps=5)
    under_way.handed_over(A, HandedOver(epoch=Epoch("g", 1), step=5, output=output, timings=timings), 14.0)


@pytest.mark.parametrize(
    ("output", "resumes", "took", "steps"),
    [(LATENTS, True, 1.5 + 4.0, 12), (LATENTS, False, 4.0, 7), (None, False, 4.0, 7)],
    ids=["goes on", "lost before another goes on", "no room for them"],
)
def test_steps_that_were_handed_over_count_where_another_goes_on_from_them(record, output, resumes, took, steps):
    under_way = Attempts()
    hand_over(under_way, record, output)
    begin(under_way, record, "dit.0", 2, B, 15.0, resumes=resumes)
    timings = Timings(compute=4.0, steps=7)
    assert under_way.done(B, StageDone(epoch=Epoch("g", 2), outputs=(), timings=timings), 19.0) == Took("dit", took)
    assert [stage.steps for stage in record.stages()] == [steps]
    assert under_way.unfinished(record, 20.0) == []


def test_what_was_handed_over_is_told_when_the_request_ends_before_another_goes_on(record):
    under_way = Attempts()
    hand_over(under_way, record, LATENTS)
    assert under_way.unfinished(record, 20.0) == [Took("dit", 1.5)]


def helped(under_way, record, **fields):
    """A dit attempt on A that has computed since 11.0; B has helped it since 12.0."""
    begin(under_way, record, "dit.0", 1, A, 11.0, **fields)
    under_way.help(Epoch("g", 2), B, Epoch("g", 1))
    under_way.started(A, Epoch("g", 1), 11.0)
    assert under_way.unfinished(record, 12.0) == [Took("dit", 1.0)], "nobody helps yet"
    under_way.started(A, Epoch("g", 2), 11.5)  # not this server's
    under_way.started(B, Epoch("g", 2), 12.0)
    assert under_way.unfinished(record, 14.0) == [Took("dit", 3.0 + 2.0)]


def done(counter, compute):
    return StageDone(epoch=Epoch("g", counter), outputs=(), timings=Timings(compute=compute))


def test_the_device_of_a_server_that_helps_is_paid_for_as_well(record):
    under_way = Attempts()
    helped(under_way, record)
    assert under_way.done(A, done(1, 4.0), 15.0) == Took("dit", 4.0 + 3.0)
    assert under_way.done(B, done(2, 9.0), 21.0) is None, "what it did afterwards was for nobody"
    assert under_way.unfinished(record, 22.0) == []
    assert [(stage.server, stage.compute_seconds) for stage in record.stages()] == [("a", 4.0)]


@pytest.mark.parametrize("end", ["is done", "fails", "is lost"])
def test_help_that_ends_first_counts_until_then(record, end):
    under_way = Attempts()
    helped(under_way, record)
    match end:
        case "is done":
            assert under_way.done(B, done(2, 9.0), 14.5) is None
        case "fails":
            under_way.failed(B, Epoch("g", 2), "cancelled", 14.5)
        case "is lost":
            under_way.server_lost(B, 14.5)
    under_way.started(B, Epoch("g", 2), 15.0)  # too late to count
    assert under_way.done(A, done(1, 5.0), 16.0) == Took("dit", 5.0 + 2.5)


def test_help_for_steps_that_were_handed_over_counts_with_them(record):
    under_way = Attempts()
    helped(under_way, record)
    timings = Timings(compute=3.0, steps=5)
    under_way.handed_over(A, HandedOver(epoch=Epoch("g", 1), step=5, output=LATENTS, timings=timings), 15.0)
    begin(under_way, record, "dit.0", 3, B, 15.0, resumes=True)
    assert under_way.done(B, done(3, 4.0), 19.0) == Took("dit", 3.0 + 3.0 + 4.0)


def test_help_for_an_attempt_that_failed_is_nobodys_use(record):
    under_way = Attempts()
    helped(under_way, record)
    under_way.failed(A, Epoch("g", 1), "server lost", 15.0)
    assert under_way.unfinished(record, 16.0) == []
