"""``POST /v1/images/edits``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts.caller import Caller, Scope
from gateway.api.deadline import deadline_seconds
from gateway.api.disconnect import while_connected
from gateway.api.edit_pictures import EditPictures
from gateway.api.edit_plan import choose_workflow, plan_edit, takes_implicit_mask
from gateway.api.edit_schema import MAX_PICTURES, MAX_URL, Edit, EditBody, from_form, from_json
from gateway.api.errors import ApiError
from gateway.api.forms import FormLimits
from gateway.api.generation import Generation
from gateway.api.idempotency import Sent, once
from gateway.api.keys import caller_with
from gateway.api.limiting import visit
from gateway.api.models import resolve
from gateway.api.serving import serve
from gateway.api.state import Api, api_of
from gateway.api.usage import uploaded_tokens
from gateway.service.interfaces import DeadlineExceeded
from gateway.settings import Settings
from gateway.storage.room import Share

MAX_FILES = 32
"""Of a form. More than are allowed, so that what is wrong with them can be said."""

Wait = Callable[[Coroutine[object, object, EditPictures]], Awaitable[EditPictures]]

router = APIRouter(prefix="/v1", tags=["images"])


def _documented() -> dict[str, Any]:
    schema = EditBody.model_json_schema()
    link = {
        "type": "string",
        "maxLength": MAX_URL,
        "pattern": "^(https?://|data:)",
        "description": "https:// or data: with base64",
    }
    reference = {
        "type": "object",
        "properties": {"image_url": link, "file_id": {"type": "string"}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    several = {"type": "array", "minItems": 1, "maxItems": MAX_PICTURES}
    as_json = {
        "images": several | {"items": reference},
        "mask": reference,
        "image_url": link,
        "reference_images": several | {"items": link},
    }
    file = {"type": "string", "format": "binary"}
    as_form = {
        "image": file,
        "image[]": several | {"items": file},
        "mask": file,
        "control_image": file,
        "ip_adapter_image": file,
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _with_pictures(schema, as_form, ("image", "image[]"))},
                "application/json": {
                    "schema": _with_pictures(schema, as_json, ("images", "image_url", "reference_images"))
                },
            },
        }
    }


def _with_pictures(schema: dict[str, Any], fields: dict[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """One of ``sources`` at least must be there."""
    needed = {"anyOf": [{"required": [name]} for name in sources]}
    return schema | {"properties": schema["properties"] | fields} | needed


@router.post("/images/edits", openapi_extra=_documented())
async def edit_images(request: Request) -> Response:
    """Make pictures from pictures and a text."""
    api, caller = api_of(request), caller_with(request, Scope.EDIT)
    await visit(request, api, caller)
    async with AsyncExitStack() as stack:
        edit = await stack.enter_async_context(_received(request, api))
        held = stack.pop_all()

    async def answer(request: Request) -> Response:
        # Afterwards the request's body is no longer needed; whoever runs the work holds the pictures, and counts them.
        async with held:
            with api.room.share() as share:
                seconds = deadline_seconds(request.headers, api.settings)
                generation, uploads = await prepare(
                    api, caller, edit, share, seconds, lambda work: while_connected(request.receive, work)
                )
        return await serve(request, api, caller.tenant, generation, uploads)

    sent = Sent("images/edits", edit.body, (*edit.pictures, edit.mask, *edit.steering.values()), held)
    return await once(request, api, caller.tenant, sent, answer)


async def prepare(
    api: Api, caller: Caller, edit: Edit, share: Share, seconds: float, wait: Wait
) -> tuple[Generation, dict[str, bytes]]:
    """What is to be done, and with which pictures; ``wait`` waits for them. Raises ``ApiError``, ``RoomTaken`` or
    ``DeadlineExceeded``."""
    model = resolve(api, edit.body.model, caller)
    alpha_is_mask = edit.mask is None and takes_implicit_mask(model, len(edit.pictures))
    if not alpha_is_mask:  # else what is to be done is not known before the picture is
        choose_workflow(model, len(edit.pictures), mask=edit.mask is not None)
    pictures = await wait(_load(api, caller.tenant, edit, share, seconds, alpha_is_mask=alpha_is_mask))
    workflow = choose_workflow(model, len(edit.pictures), mask=pictures.has_mask)
    generation = plan_edit(edit.body, model, api.settings, workflow, pictures.size)
    sent = uploaded_tokens(pictures.uploads, generation.token_side)
    return replace(generation, uploaded_tokens=sent), pictures.uploads


@asynccontextmanager
async def _received(request: Request, api: Api) -> AsyncIterator[Edit]:
    """The request, whose pictures lie where they were received until the end. Raises ``ApiError``."""
    settings = api.settings
    match request.headers.get("content-type", "").partition(";")[0].strip().lower():
        case "multipart/form-data":
            async with api.forms.read(request, _form_limits(settings)) as form:
                yield from_form(form)
        case "application/json":
            body = api.forms.read_json(request, settings.max_edit_body_bytes, settings.upload_timeout_seconds)
            async with body as raw:
                yield from_json(raw, settings.max_body_bytes)
        case other:
            raise ApiError(
                f"Content-Type must be multipart/form-data or application/json, not '{other}'.",
                code="unsupported_media_type",
                status=415,
            )


def _form_limits(settings: Settings) -> FormLimits:
    return FormLimits(
        body_bytes=settings.max_edit_body_bytes,
        file_bytes=settings.max_image_bytes,
        fields_bytes=settings.max_body_bytes + MAX_URL,
        seconds=settings.upload_timeout_seconds,
        files=MAX_FILES,
    )


async def _load(
    api: Api, tenant: str, edit: Edit, share: Share, seconds: float, *, alpha_is_mask: bool
) -> EditPictures:
    try:
        async with asyncio.timeout(seconds):
            loaded = await api.loader.load(edit, tenant, share, alpha_is_mask=alpha_is_mask)
            steering = await api.loader.steering(edit.steering, tenant, share)
            return replace(loaded, uploads={**loaded.uploads, **steering})
    except TimeoutError:
        raise DeadlineExceeded(f"The pictures were not ready within {seconds:g} s.") from None
