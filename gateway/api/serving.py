"""Runs what an endpoint has planned, and answers: with one JSON body, or with events as the pictures come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from starlette.requests import Request
from starlette.responses import Response

from gateway.api import answer
from gateway.api.deadline import deadline_seconds
from gateway.api.disconnect import while_connected
from gateway.api.generation import Generation
from gateway.api.job_posting import post_job
from gateway.api.limiting import working
from gateway.api.metadata import Mode, with_metadata
from gateway.api.pictures import url_of
from gateway.api.priority import priority
from gateway.api.state import Api
from gateway.api.streaming import Events, EventStream
from gateway.api.work_done import WorkDone
from gateway.service.interfaces import DeadlineExceeded, Finished, ImageRequest, Listener, unheard
from wire.trace import NO_SPAN, inject, pointless

log = logging.getLogger(__name__)
tracer = trace.get_tracer("disagfusion.gateway")


async def serve(
    request: Request, api: Api, tenant: str, generation: Generation, uploads: Mapping[str, bytes] | None = None
) -> Response:
    """The body must have been read. Raises ``ApiError``, a ``ServiceError`` or ``ClientDisconnect``."""
    if generation.as_job:
        return await post_job(request, api, tenant, generation, uploads or {})
    work = ImageRequest(
        request_id=request.state.request_id,
        model=generation.model,
        images=generation.images,
        deadline_seconds=deadline_seconds(request.headers, api.settings),
        tenant=tenant,
        priority=priority(request.headers),
        exact=generation.exact,
        enhance=generation.enhance,
        uploads=uploads or {},
    )
    done = request.state.work = WorkDone(generation)
    run = partial(_run, request, api, done, work)
    if generation.stream:
        events = Events(generation, api.settings.embed_metadata)
        return EventStream(run, events, answer.early_headers(generation), partial(api.service.place, work.request_id))
    finished = await while_connected(request.receive, run())
    items = await _items(request, api, generation, finished)
    return Response(
        answer.join(items, generation, created=int(time.time()), prompt=finished.prompt),
        media_type="application/json",
        headers=answer.headers(finished, generation, with_stages=api.settings.expose_stage_timings),
    )


async def _run(
    request: Request, api: Api, done: WorkDone, work: ImageRequest, listener: Listener = unheard
) -> Finished:
    """Within the caller's limits, and measured. Raises ``ApiError`` 429 before anything is begun."""
    async with working(request, api, work.model, len(work.images)) as visit:
        done.finished = await perform(api, done.generation, work, visit.heard_by(listener))
        return done.finished


async def perform(
    api: Api,
    generation: Generation,
    work: ImageRequest,
    listener: Listener,
    parent: Context | None = None,
) -> Finished:
    """The work itself, for whoever waits for it: a request, or a job. Raises a ``ServiceError``.

    The service ends the request at its deadline; this ends it if the service does not.
    """
    with _span(generation, parent) as span:
        if api.settings.log_prompts:
            prompt = generation.images[0].prompt
            log.info("%s: prompt %r", work.request_id, prompt)
            span.set_attribute("gen_ai.input.messages", prompt)
        try:
            async with asyncio.timeout(work.deadline_seconds + api.settings.deadline_grace_seconds):
                if span is not INVALID_SPAN:
                    work = replace(work, traceparent=inject())
                return await api.service.generate(work, listener)
        except TimeoutError:
            raise DeadlineExceeded(f"Generation exceeded the deadline of {work.deadline_seconds:g} s.") from None


async def _items(request: Request, api: Api, generation: Generation, finished: Finished) -> list[answer.Item]:
    mode = api.settings.embed_metadata
    images = finished_pictures(finished, generation, mode)
    if not generation.as_url:
        return answer.b64_items(images)
    request.state.answer_lasts_seconds = api.settings.results_max_age_seconds  # a kept answer must not outlive its urls
    names = [await api.storage.pictures.put(image, generation.output_format) for image in images]
    return answer.url_items(url_of(request, api, name) for name in names)


def finished_pictures(finished: Finished, generation: Generation, mode: Mode) -> list[bytes]:
    """As clients get them."""
    revised = finished.prompt.revised
    return [with_metadata(data, generation, image, mode, revised) for image, data in enumerate(finished.images)]


def _span(generation: Generation, parent: Context | None) -> AbstractContextManager[Span]:
    if pointless(tracer, parent):
        return NO_SPAN
    name, attributes = f"generate_content {generation.model}", _span_attributes(generation)
    return tracer.start_as_current_span(name, context=parent, kind=SpanKind.INTERNAL, attributes=attributes)


def _span_attributes(generation: Generation) -> Mapping[str, str | int | bool]:
    """OpenTelemetry's generative AI conventions."""
    attributes: dict[str, str | int | bool] = {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.provider.name": "disagfusion",
        "gen_ai.request.model": generation.requested_model or generation.model,
        "gen_ai.response.model": generation.model,
    }
    if len(generation.images) > 1:
        attributes["gen_ai.request.choice.count"] = len(generation.images)
    if generation.seeded:
        attributes["gen_ai.request.seed"] = generation.seed
    if generation.stream:
        attributes["gen_ai.request.stream"] = True
    return attributes
