"""``POST /v1/images/generations``: validate, run, answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from fastapi import APIRouter
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from starlette.requests import Request
from starlette.responses import Response

from gateway.api import answer
from gateway.api.body import read_json
from gateway.api.context import current_traceparent
from gateway.api.deadline import deadline_seconds
from gateway.api.disconnect import while_connected
from gateway.api.generation import Generation, plan
from gateway.api.keys import Tenant
from gateway.api.models import resolve
from gateway.api.pictures import url_of
from gateway.api.priority import priority
from gateway.api.schema import GenerationBody
from gateway.api.state import Api, ApiDep
from gateway.service.interfaces import DeadlineExceeded, Finished, ImageRequest
from wire.params import ModelInfo

log = logging.getLogger(__name__)
tracer = trace.get_tracer("disagfusion.gateway")

router = APIRouter(prefix="/v1", tags=["images"])

_BODY_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerationBody.model_json_schema()}},
    }
}


@router.post("/images/generations", openapi_extra=_BODY_SCHEMA)
async def generate_images(request: Request, api: ApiDep, tenant: Tenant) -> Response:
    """Make pictures from a text."""
    body = await read_json(request, GenerationBody, api.settings)
    model = resolve(api, body.model)
    generation = plan(body, model, api.settings)
    deadline = deadline_seconds(request.headers, api.settings)
    urgency = priority(request.headers)
    with tracer.start_as_current_span(
        f"generate_content {model.name}", kind=SpanKind.INTERNAL, attributes=_span_attributes(body, model, generation)
    ) as span:
        if api.settings.log_prompts:
            log.info("%s: prompt %r", request.state.request_id, body.prompt)
            span.set_attribute("gen_ai.input.messages", body.prompt)
        work = ImageRequest(
            request_id=request.state.request_id,
            model=model.name,
            images=generation.images,
            deadline_seconds=deadline,
            tenant=tenant,
            priority=urgency,
            seeded=body.seed is not None,
            traceparent=current_traceparent(),
        )
        finished = await while_connected(request.receive, _run(api, work))
    items = await _items(request, api, generation, finished)
    return Response(
        answer.join(items, body, generation, created=int(time.time())),
        media_type="application/json",
        headers=answer.headers(finished, generation, with_stages=api.settings.expose_stage_timings),
    )


async def _run(api: Api, work: ImageRequest) -> Finished:
    """The service ends the request at its deadline; this ends it if the service does not."""
    try:
        async with asyncio.timeout(work.deadline_seconds + api.settings.deadline_grace_seconds):
            return await api.service.generate(work)
    except TimeoutError:
        raise DeadlineExceeded(f"Generation exceeded the deadline of {work.deadline_seconds:g} s.") from None


async def _items(request: Request, api: Api, generation: Generation, finished: Finished) -> list[answer.Item]:
    if not generation.as_url:
        return answer.b64_items(finished.images)
    names = [await api.storage.pictures.put(image, generation.output_format) for image in finished.images]
    return answer.url_items(url_of(request, api, name) for name in names)


def _span_attributes(body: GenerationBody, model: ModelInfo, generation: Generation) -> Mapping[str, str | int]:
    """OpenTelemetry's generative AI conventions."""
    attributes: dict[str, str | int] = {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.provider.name": "disagfusion",
        "gen_ai.request.model": body.model or model.name,
        "gen_ai.response.model": model.name,
    }
    if len(generation.images) > 1:
        attributes["gen_ai.request.choice.count"] = len(generation.images)
    if body.seed is not None:
        attributes["gen_ai.request.seed"] = body.seed
    return attributes
