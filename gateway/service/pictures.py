"""Finished pictures on their way from the stage servers that hold them to the gateway, at most one per job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from scheduler.events import ResultLost
from scheduler.spec import Input
from wire.errors import UNREACHED, InputLost
from wire.record import record
from wire.to_stage import InputRef
from wire.trace import NO_SPAN, extract, pointless, transfer_attributes
from wire.types import Handle, JobId, ServerId

log = logging.getLogger(__name__)
tracer = trace.get_tracer("disagfusion.gateway")


@record(frozen=True, slots=True)
class Picture:
    """A fetch has succeeded."""

    job: JobId
    handle: Handle
    data: bytes


@record(frozen=True, slots=True)
class _Fetch:
    source: Input
    task: asyncio.Task[None]


class Pictures:
    """``fetch`` raises ``InputLost``; ``tell`` hears how each fetch ended, unless it was stopped."""

    def __init__(self, fetch: Callable[[InputRef], Awaitable[bytes]], tell: Callable[[Picture | ResultLost], None]):
        self._fetch = fetch
        self._tell = tell
        self._under_way: dict[JobId, _Fetch] = {}

    def start(self, tasks: asyncio.TaskGroup, job: JobId, source: Input, ref: InputRef, traceparent: str = "") -> None:
        """Instead of an earlier fetch for the same job. ``traceparent``: of its request."""
        self.stop(job)
        self._under_way[job] = _Fetch(source, tasks.create_task(self._run(job, ref, traceparent), name=f"fetch {job}"))

    def take(self, picture: Picture) -> bool:
        """Whether ``picture`` is still wanted, which ends its fetch: news may cross with a stop."""
        fetch = self._under_way.get(picture.job)
        if fetch is None or fetch.source.handle != picture.handle:
            return False
        del self._under_way[picture.job]
        return True

    def stop(self, job: JobId) -> None:
        fetch = self._under_way.pop(job, None)
        if fetch is not None:
            fetch.task.cancel()

    def stop_from(self, holder: ServerId) -> None:
        for job in [job for job, fetch in self._under_way.items() if fetch.source.holder == holder]:
            self.stop(job)

    async def _run(self, job: JobId, ref: InputRef, traceparent: str) -> None:
        try:
            with _span(ref, traceparent):
                data = await self._fetch(ref)
        except InputLost as lost:
            log.warning("the picture of %s cannot be fetched: %s", job, lost)
            self._tell(ResultLost(job, ref.handle, lost.reason in UNREACHED))
        else:
            self._tell(Picture(job, ref.handle, data))


def _span(ref: InputRef, traceparent: str) -> AbstractContextManager[Span]:
    """``transfer``, below the request's; its time has that in which others are fetched first."""
    if not traceparent and pointless(tracer, Context()):
        return NO_SPAN
    return tracer.start_as_current_span(
        "transfer",
        context=extract(traceparent),
        kind=SpanKind.CLIENT,
        attributes=transfer_attributes(ref.endpoint, ref.nbytes),
    )
