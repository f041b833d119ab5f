"""``POST /v1/images/generations``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts.caller import Scope
from gateway.api.body import read_json
from gateway.api.control_pictures import prepare_controlled
from gateway.api.deadline import deadline_seconds
from gateway.api.disconnect import while_connected
from gateway.api.generation import plan
from gateway.api.idempotency import Sent, once
from gateway.api.keys import caller_with
from gateway.api.limiting import visit
from gateway.api.models import resolve
from gateway.api.schema import GenerationBody
from gateway.api.serving import serve
from gateway.api.state import api_of

router = APIRouter(prefix="/v1", tags=["images"])

_BODY_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerationBody.model_json_schema()}},
    }
}


@router.post("/images/generations", openapi_extra=_BODY_SCHEMA)
async def generate_images(request: Request) -> Response:
    """Make pictures from a text."""
    api, caller = api_of(request), caller_with(request, Scope.GENERATE)
    await visit(request, api, caller)
    body = await read_json(request, GenerationBody, api.settings)

    async def answer(request: Request) -> Response:
        if not body.control and body.ip_adapter is None:
            return await serve(request, api, caller.tenant, plan(body, resolve(api, body.model, caller), api.settings))
        with api.room.share() as share:
            seconds = deadline_seconds(request.headers, api.settings)
            generation, uploads = await prepare_controlled(
                api, caller, body, share, seconds, lambda work: while_connected(request.receive, work)
            )
        return await serve(request, api, caller.tenant, generation, uploads)

    return await once(request, api, caller.tenant, Sent("images/generations", body), answer)
