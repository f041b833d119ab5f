"""A finished attempt as spans of its request's trace: one for the stage, below it one per phase.

Written afterwards from the times taken, so that tracing costs a running job nothing. Without an SDK this does nothing.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from stage_server.runtime.events import Broke, JobEvent
from stage_server.runtime.phases import Phase, Phases
from wire.to_stage import Member, Run
from wire.trace import extract

_tracer = trace.get_tracer("stage_server")


def record_spans(run: Run, phases: Phases, outcome: JobEvent) -> None:
    """``outcome`` is the last event of the job."""
    for member in run.members:
        if member.traceparent:
            _record(run, member, phases, outcome)


def _record(run: Run, member: Member, phases: Phases, outcome: JobEvent) -> None:
    end = max((ended for _, _, ended in phases.spans), default=phases.began_ns)
    stage = _tracer.start_span(
        f"stage {run.role}",
        context=extract(member.traceparent),
        kind=SpanKind.SERVER,
        start_time=phases.began_ns,
        attributes={
            "epoch": member.epoch.counter,
            "batch": len(run.members),
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
        span.end(ended)
    stage.end(end)
