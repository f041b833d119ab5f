"""Attempts under way as their requests' traces and reports see them: who works on what, since when, and how it ended.

Each attempt is a span "stage <role>" below the request's; the stage server's own spans are its children.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from gateway.service.graph import Graph, StageJob
from gateway.service.interfaces import UNCOUNTED, PromptRead, StageReport, Took
from wire.to_gateway import StageDone
from wire.trace import extract, inject
from wire.types import Epoch, JobId, ServerId, server_name

tracer = trace.get_tracer("disagfusion.gateway")


@dataclass(slots=True)
class Record:
    """What is known of one request's jobs so far. Times are on the clock of the caller, seconds."""

    graph: Graph
    traceparent: str
    arrived: float
    attempts: Counter[JobId] = field(default_factory=Counter)
    done: dict[JobId, float] = field(default_factory=dict)
    reports: dict[JobId, StageReport] = field(default_factory=dict)
    prompt: PromptRead = UNCOUNTED
    """As the latest encoder job says; all have the same prompt."""

    def runnable_since(self, job: StageJob) -> float:
        """When the last of its inputs was there."""
        return max((self.done.get(need, self.arrived) for need in job.spec.needs), default=self.arrived)

    def stages(self) -> tuple[StageReport, ...]:
        return tuple(self.reports[job] for job in self.graph.jobs if job in self.reports)


@dataclass(slots=True)
class _Attempt:
    record: Record
    job: StageJob
    server: ServerId
    queue_seconds: float
    span: Span
    computed_seconds: float = 0.0
    """Before it was paused."""
    computing_since: float | None = None

    def device_seconds(self, now: float) -> float:
        return self.computed_seconds + (0.0 if self.computing_since is None else now - self.computing_since)


class Attempts:
    """Every attempt from ``begin`` to its last word, or to the loss of its server."""

    def __init__(self) -> None:
        self._under_way: dict[Epoch, _Attempt] = {}

    def begin(self, epoch: Epoch, record: Record, job: StageJob, server: ServerId, now: float) -> str:
        """The ``traceparent`` for the stage server; empty without tracing."""
        queued = max(0.0, now - record.runnable_since(job))
        record.attempts[job.spec.id] += 1
        span = _start_span(record, job, server, queued)
        self._under_way[epoch] = _Attempt(record, job, server, queued, span)
        return inject(trace.set_span_in_context(span))

    def job(self, server: ServerId, epoch: Epoch) -> StageJob | None:
        """What the server works on under this epoch, if it does."""
        attempt = self._under_way.get(epoch)
        return attempt.job if attempt is not None and attempt.server == server else None

    def started(self, server: ServerId, epoch: Epoch, now: float) -> None:
        """It has the device, for the first time or again."""
        attempt = self._under_way.get(epoch)
        if attempt is not None and attempt.server == server:
            attempt.computing_since = now

    def paused(self, server: ServerId, epoch: Epoch, now: float) -> None:
        attempt = self._under_way.get(epoch)
        if attempt is not None and attempt.server == server:
            attempt.computed_seconds, attempt.computing_since = attempt.device_seconds(now), None

    def unfinished(self, record: Record, now: float) -> list[Took]:
        """What the attempts under way of a request took until now, as seen from here."""
        return [
            Took(attempt.job.spec.role, seconds)
            for attempt in self._under_way.values()
            if attempt.record is record and (seconds := attempt.device_seconds(now)) > 0
        ]

    def done(self, server: ServerId, message: StageDone, now: float) -> Took | None:
        """What it took, unless that was said of this job before: it may run again for the sake of a lost output."""
        attempt = self._take(server, message.epoch)
        if attempt is None:
            return None
        record, job, times = attempt.record, attempt.job, message.timings
        attempt.span.set_attribute("disagfusion.steps", times.steps)
        attempt.span.end()
        took = Took(job.spec.role, times.compute / times.batch)
        if job.preview is not None:
            return took
        is_new = job.spec.id not in record.reports
        record.done[job.spec.id] = now
        if message.prompt_tokens:
            record.prompt = PromptRead(message.prompt_tokens, message.prompt_dropped)
        record.reports[job.spec.id] = StageReport(
            role=job.spec.role,
            image=job.image,
            server=server_name(attempt.server),
            attempts=record.attempts[job.spec.id],
            queue_seconds=attempt.queue_seconds + times.wait,
            fetch_seconds=times.fetch,
            compute_seconds=times.compute,
            publish_seconds=times.publish,
            steps=times.steps,
        )
        return took if is_new else None

    def failed(self, server: ServerId, epoch: Epoch, why: str) -> None:
        attempt = self._take(server, epoch)
        if attempt is not None:
            attempt.span.set_status(Status(StatusCode.ERROR, why))
            attempt.span.end()

    def server_lost(self, server: ServerId) -> None:
        for epoch in [epoch for epoch, attempt in self._under_way.items() if attempt.server == server]:
            self.failed(server, epoch, "server lost")

    def _take(self, server: ServerId, epoch: Epoch) -> _Attempt | None:
        """None for what a server says of attempts that are not its own."""
        attempt = self._under_way.get(epoch)
        if attempt is None or attempt.server != server:
            return None
        return self._under_way.pop(epoch)


def _start_span(record: Record, job: StageJob, server: ServerId, queued: float) -> Span:
    now = time.time_ns()
    since = now - int(queued * 1e9)
    span = tracer.start_span(
        f"stage {job.spec.role}",
        context=extract(record.traceparent),
        kind=SpanKind.CLIENT,
        start_time=since,
        attributes={
            "disagfusion.server": server_name(server),
            "disagfusion.attempt": record.attempts[job.spec.id],
            "disagfusion.queue_seconds": queued,
            **({} if job.image is None else {"disagfusion.image": job.image}),
        },
    )
    tracer.start_span("queue", context=trace.set_span_in_context(span), start_time=since).end(now)
    return span
