"""A finished attempt as spans of its request's trace: one for the stage, below it one per phase, and per input fetched.

Written afterwards from the times taken, so that tracing costs a running job nothing. Without an SDK this does nothing.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from time import time_ns

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from stage_server.runtime.events import Broke, JobEvent
from stage_server.runtime.phases import Phase, Phases
from wire.bundle import Bundle
from wire.to_stage import InputRef, Member
from wire.trace import extract, transfer_attributes
from wire.types import Role

_tracer = trace.get_tracer("stage_server")


@dataclass(slots=True)
class Transfers:
    """When each input of a traced attempt was asked for, and when it came."""

    ended: list[tuple[InputRef, int, int, bool]] = field(default_factory=list)
    """Begin and end in nanoseconds since the epoch, and whether it came."""

    def watch(self, ref: InputRef, fetch: Future[Bundle]) -> None:
        fetch.add_done_callback(partial(self._over, ref, time_ns()))

    def _over(self, ref: InputRef, began: int, fetch: Future[Bundle]) -> None:
        came = not fetch.cancelled() and fetch.exception() is None
        self.ended.append((ref, began, time_ns(), came))

    def record(self, parent: Context) -> None:
        for ref, began, ended, came in self.ended:
            span = _tracer.start_span(
                "transfer",
                context=parent,
                kind=SpanKind.CLIENT,
                start_time=began,
                attributes=transfer_attributes(ref.endpoint, ref.nbytes),
            )
            if not came:
                span.set_status(Status(StatusCode.ERROR))
            span.end(ended)


def record_spans(role: Role, member: Member, phases: Phases, transfers: Transfers, outcome: JobEvent) -> None:
    """``outcome`` is the last event of the job."""
    if not member.traceparent:
        return
    end = max((ended for _, _, ended in phases.spans), default=phases.began_ns)
    stage = _tracer.start_span(
        f"stage {role}",
        context=extract(member.traceparent),
        kind=SpanKind.SERVER,
        start_time=phases.began_ns,
        attributes={
            "epoch": member.epoch.counter,
            "batch": phases.company,
            "outcome": type(outcome).__name__.lower(),
        },
    )
    if isinstance(outcome, Broke):
        stage.set_status(Status(StatusCode.ERROR, outcome.code))
    parent = trace.set_span_in_context(stage)
    for phase, began, ended in phases.spans:
        span = _tracer.start_span(phase, context=parent, start_time=began)
        if phase is Phase.COMPUTE:
            span.set_attributes({"steps": phases.steps, "paused_seconds": phases.paused})
        elif phase is Phase.FETCH:
            transfers.record(trace.set_span_in_context(span))
        span.end(ended)
    stage.end(end)
