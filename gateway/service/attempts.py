"""Attempts under way as their requests' traces and reports see them: who works on what, since when, and how it ended.

Each attempt is a span "stage <role>" below the request's; the stage server's own spans are its children. Attempts that
compute together link to each other, and one that a kept encoding spares links to the encoding.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, Status, StatusCode

from gateway.service.graph import Graph, StageJob
from gateway.service.interfaces import UNCOUNTED, PromptRead, StageReport, Took
from wire.to_gateway import HandedOver, StageDone
from wire.trace import extract, inject, named_by, pointless
from wire.types import Epoch, JobId, Role, ServerId, server_name

tracer = trace.get_tracer("disagfusion.gateway")

LINK = "disagfusion.link"
"""Attribute of links: why."""
TOGETHER, ENCODING = "computed together", "kept encoding"


@dataclass(slots=True)
class Before:
    """What a job computed before it was handed over, and that it goes on from."""

    compute_seconds: float = 0.0
    device_seconds: float = 0.0
    """Its share, where others computed with it."""
    steps: int = 0


@dataclass(slots=True)
class Record:
    """What is known of one request's jobs so far. Times are on the clock of the caller, seconds."""

    graph: Graph
    traceparent: str
    arrived: float
    attempts: Counter[JobId] = field(default_factory=Counter)
    done: dict[JobId, float] = field(default_factory=dict)
    reports: dict[JobId, StageReport] = field(default_factory=dict)
    before: dict[JobId, Before] = field(default_factory=dict)
    """Of jobs that were handed over, until they are done or begin anew."""
    prompt: PromptRead = UNCOUNTED
    """As the latest encoder job says; all have the same prompt."""

    def runnable_since(self, job: StageJob) -> float:
        """When the last of its inputs was there."""
        return max((self.done.get(need, self.arrived) for need in job.spec.needs), default=self.arrived)

    def stages(self) -> tuple[StageReport, ...]:
        return tuple(self.reports[job] for job in self.graph.jobs if job in self.reports)


@dataclass(slots=True, eq=False)
class _Help:
    """Of a server that computes half of another's guided steps."""

    server: ServerId
    began: float | None = None
    ended: float | None = None

    def seconds(self, now: float) -> float:
        """For which it has had its device."""
        return 0.0 if self.began is None else (now if self.ended is None else self.ended) - self.began

    def begin(self, now: float) -> None:
        if self.began is None and self.ended is None:
            self.began = now

    def end(self, now: float) -> None:
        if self.ended is None:
            self.ended = now


@dataclass(slots=True)
class _Attempt:
    record: Record
    job: StageJob
    server: ServerId
    queue_seconds: float
    span: Span
    share: bool
    """Others may compute together with it."""
    company: int = 0
    """Attempts that compute together now, itself among them; 0 while it does not."""
    computed_seconds: float = 0.0
    """Its share of the device's time until …"""
    at: float = 0.0
    traceparent: str = ""
    """Of its span."""
    linked: set[Epoch] = field(default_factory=set)
    """With whom it was seen to compute: after a pause they are not linked again."""
    help: _Help | None = None

    def device_seconds(self, now: float) -> float:
        return self.computed_seconds + (now - self.at) / self.company if self.company else self.computed_seconds

    def helped_seconds(self, now: float) -> float:
        """Of another server's device."""
        return 0.0 if self.help is None else self.help.seconds(now)

    def keep_company(self, company: int, now: float) -> None:
        self.computed_seconds, self.at, self.company = self.device_seconds(now), now, company


class Attempts:
    """Every attempt from ``begin`` to its last word, or to the loss of its server."""

    def __init__(self) -> None:
        self._under_way: dict[Epoch, _Attempt] = {}
        self._together: dict[ServerId, dict[Epoch, _Attempt]] = {}
        """Those that compute and share their device."""
        self._helps: dict[Epoch, _Help] = {}

    def begin(
        self,
        epoch: Epoch,
        record: Record,
        job: StageJob,
        server: ServerId,
        now: float,
        *,
        share: bool = False,
        resumes: bool = False,
    ) -> str:
        """The ``traceparent`` for the stage server; empty without tracing. One that does not resume begins anew."""
        queued = max(0.0, now - record.runnable_since(job))
        record.attempts[job.spec.id] += 1
        if not resumes:
            record.before.pop(job.spec.id, None)
        span: Span = INVALID_SPAN
        if record.traceparent or not pointless(tracer, Context()):
            span = _start_span(record, job, server, queued)
        traceparent = inject(trace.set_span_in_context(span)) if span is not INVALID_SPAN else ""
        self._under_way[epoch] = _Attempt(record, job, server, queued, span, share, traceparent=traceparent)
        return traceparent

    def help(self, epoch: Epoch, server: ServerId, helped: Epoch) -> None:
        """From now on ``server`` computes half of the attempt ``helped``, which pays for that device, too."""
        attempt = self._under_way.get(helped)
        if attempt is not None:
            attempt.help = self._helps[epoch] = _Help(server)

    def job(self, server: ServerId, epoch: Epoch) -> StageJob | None:
        """What the server works on under this epoch, if it does."""
        attempt = self._under_way.get(epoch)
        return attempt.job if attempt is not None and attempt.server == server else None

    def traceparent(self, epoch: Epoch) -> str:
        """Of the attempt's span; empty without tracing."""
        attempt = self._under_way.get(epoch)
        return attempt.traceparent if attempt is not None else ""

    def started(self, server: ServerId, epoch: Epoch, now: float) -> None:
        """It has the device, for the first time or again."""
        help_ = self._helps.get(epoch)
        if help_ is not None and help_.server == server:
            help_.begin(now)
        attempt = self._under_way.get(epoch)
        if attempt is not None and attempt.server == server:
            self._computes(epoch, attempt, now, computes=True)

    def paused(self, server: ServerId, epoch: Epoch, now: float) -> None:
        attempt = self._under_way.get(epoch)
        if attempt is not None and attempt.server == server:
            self._computes(epoch, attempt, now, computes=False)

    def unfinished(self, record: Record, now: float) -> list[Took]:
        """What the attempts under way of a request took until now, as seen from here, and those handed over."""
        handed_over = [Took(Role.DIT, before.device_seconds) for before in record.before.values()]
        return handed_over + [
            Took(attempt.job.spec.role, seconds)
            for attempt in self._under_way.values()
            if attempt.record is record and (seconds := attempt.device_seconds(now) + attempt.helped_seconds(now)) > 0
        ]

    def done(self, server: ServerId, message: StageDone, now: float) -> Took | None:
        """What it took, unless that was said of this job before: it may run again for the sake of a lost output."""
        attempt = self._take(server, message.epoch, now)
        if attempt is None:
            return None
        record, job, times = attempt.record, attempt.job, message.timings
        attempt.span.set_attribute("disagfusion.steps", times.steps)
        attempt.span.end()
        before = record.before.pop(job.spec.id, Before())
        seconds = times.compute / times.batch + before.device_seconds + attempt.helped_seconds(now)
        took = Took(job.spec.role, seconds)
        if job.preview is not None:
            return took
        is_new = job.spec.id not in record.reports
        record.done[job.spec.id] = now
        if message.prompt_tokens:
            record.prompt = PromptRead(message.prompt_tokens, message.prompt_dropped, record.prompt.revised)
        record.reports[job.spec.id] = StageReport(
            role=job.spec.role,
            image=job.image,
            server=server_name(attempt.server),
            attempts=record.attempts[job.spec.id],
            queue_seconds=attempt.queue_seconds + times.wait,
            fetch_seconds=times.fetch,
            compute_seconds=times.compute + before.compute_seconds,
            publish_seconds=times.publish,
            steps=times.steps + before.steps,
        )
        return took if is_new else None

    def handed_over(self, server: ServerId, message: HandedOver, now: float) -> None:
        """What its steps took is said with the rest: lost before another goes on, they count for nothing."""
        attempt = self._take(server, message.epoch, now)
        if attempt is None:
            return
        attempt.span.set_attribute("disagfusion.handed_over_after", message.step)
        attempt.span.end()
        if message.output is not None:
            times, before = message.timings, attempt.record.before.setdefault(attempt.job.spec.id, Before())
            before.compute_seconds += times.compute
            before.device_seconds += times.compute / times.batch + attempt.helped_seconds(now)
            before.steps += times.steps

    def failed(self, server: ServerId, epoch: Epoch, why: str, now: float) -> None:
        attempt = self._take(server, epoch, now)
        if attempt is not None:
            attempt.span.set_status(Status(StatusCode.ERROR, why))
            attempt.span.end()

    def server_lost(self, server: ServerId, now: float) -> None:
        lost = [
            epoch for known in (self._under_way, self._helps) for epoch, each in known.items() if each.server == server
        ]
        for epoch in lost:
            self.failed(server, epoch, "server lost", now)

    def _computes(self, epoch: Epoch, attempt: _Attempt, now: float, *, computes: bool) -> None:
        """It has begun, paused or ended: the device's time is shared among others than before."""
        if not attempt.share:
            attempt.keep_company(int(computes), now)
            return
        together = self._together.setdefault(attempt.server, {})
        together.pop(epoch, None)
        if computes:
            _link(epoch, attempt, together)
            together[epoch] = attempt
        attempt.keep_company(0, now)
        for each in together.values():
            each.keep_company(len(together), now)
        if not together:
            del self._together[attempt.server]

    def _take(self, server: ServerId, epoch: Epoch, now: float) -> _Attempt | None:
        """None for what a server says of attempts that are not its own."""
        help_ = self._helps.get(epoch)
        if help_ is not None and help_.server == server:
            del self._helps[epoch]
            help_.end(now)
            return None
        attempt = self._under_way.get(epoch)
        if attempt is None or attempt.server != server:
            return None
        self._computes(epoch, attempt, now, computes=False)
        if attempt.help is not None:
            attempt.help.end(now)  # what it still does is for nobody
        return self._under_way.pop(epoch)


def note_kept(record: Record, server: ServerId, encoding: str) -> None:
    """A span of no length in place of an encoder job's, for what ``server`` keeps; ``encoding``: the ``traceparent`` of
    the attempt that made it."""
    if not record.traceparent and pointless(tracer, Context()):
        return
    made_by = named_by(encoding)
    tracer.start_span(
        f"stage {Role.ENCODER}",
        context=extract(record.traceparent),
        attributes={"disagfusion.server": server_name(server), "disagfusion.kept": True},
        links=[Link(made_by, {LINK: ENCODING})] if made_by.is_valid else [],
    ).end()


def _link(epoch: Epoch, attempt: _Attempt, others: Mapping[Epoch, _Attempt]) -> None:
    """It and those that compute already name each other."""
    if not attempt.span.is_recording():
        return
    for met, other in others.items():
        if met not in attempt.linked and other.span.get_span_context().is_valid:
            attempt.linked.add(met)
            other.linked.add(epoch)
            attempt.span.add_link(other.span.get_span_context(), {LINK: TOGETHER})
            other.span.add_link(attempt.span.get_span_context(), {LINK: TOGETHER})


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
