"""``/v1/batches``: files of requests that are run when nobody else wants the servers, as OpenAI's."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts.caller import Caller, Scope
from gateway.api.batch_work import EDITS, LineRequest
from gateway.api.body import json_answer, read_json
from gateway.api.errors import ApiError
from gateway.api.files import DAY
from gateway.api.idempotency import Sent, once
from gateway.api.job_posting import desk_of, is_id
from gateway.api.jobs import refuse_open_lists
from gateway.api.keys import CallerDep, Tenant, missing_scope, with_scope
from gateway.api.limiting import visit
from gateway.api.state import Api, ApiDep
from gateway.database.batches import BatchRecord, BatchStatus

MAX_BYTES = 200 << 20
"""Of a batch's file."""

Key = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]

router = APIRouter(prefix="/v1/batches", tags=["batches"], dependencies=[Depends(with_scope(Scope.JOBS))])


class OutputExpiry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=30 * DAY)


class BatchBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str
    endpoint: Literal["/v1/images/generations", "/v1/images/edits"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Key, Value], Field(max_length=16)] | None = None
    output_expires_after: OutputExpiry | None = None


class Selection(BaseModel):
    """The query of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = None


def _documented() -> dict[str, Any]:
    schema = BatchBody.model_json_schema()
    (expiry,) = schema.pop("$defs").values()  # a reference would be looked for at the document's root
    schema["properties"]["output_expires_after"] = {"anyOf": [expiry, {"type": "null"}]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("", openapi_extra=_documented())
async def create_batch(request: Request, api: ApiDep, caller: CallerDep) -> Response:
    """Run the requests of a file within 24 hours."""
    await visit(request, api, caller)
    body = await read_json(request, BatchBody, api.settings)
    needed = Scope.EDIT if body.endpoint == EDITS else Scope.GENERATE
    if needed not in caller.scopes:
        raise missing_scope(needed)

    async def answer(_: Request) -> Response:
        return await _start(api, caller, body)

    return await once(request, api, caller.tenant, Sent("batches", body), answer)


async def _start(api: Api, caller: Caller, body: BatchBody) -> Response:
    desk = desk_of(api)
    await api.storage.ready()
    file = await api.storage.files.find(caller.tenant, body.input_file_id)
    if file is None:
        raise _refused(f"No such File object: {body.input_file_id[:80]}", "file_not_found", 404)
    if file.purpose != "batch":
        raise _refused(f"The file's purpose must be 'batch', not '{file.purpose}'.", "invalid_value")
    if file.nbytes > MAX_BYTES:
        raise _refused(f"The file has {file.nbytes} bytes; a batch's may have {MAX_BYTES}.", "file_too_large")
    now = time.time()
    record = BatchRecord(
        id=f"batch_{secrets.token_hex(16)}",
        tenant=caller.tenant,
        endpoint=body.endpoint,
        input_file_id=file.id,
        request=msgspec.json.encode(LineRequest(file.id, caller)),
        given=msgspec.json.encode(body.metadata),
        created_at=now,
        expires_at=now + DAY,
        output_seconds=body.output_expires_after.seconds if body.output_expires_after else None,
    )
    await desk.accept_batch(record)
    return json_answer(await _describe(api, record))


@router.get("")
async def list_batches(api: ApiDep, tenant: Tenant, selection: Annotated[Selection, Query()]) -> Response:
    """The caller's batches, newest first."""
    refuse_open_lists(tenant, "Batches")
    after = None if selection.after is None else await _wanted(api, tenant, selection.after, "after")
    page, has_more = await desk_of(api).batches.page(tenant, limit=selection.limit, after=after)
    return json_answer(
        {
            "object": "list",
            "data": [await _describe(api, record) for record in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": has_more,
        }
    )


@router.get("/{batch_id}")
async def retrieve_batch(batch_id: str, api: ApiDep, tenant: Tenant) -> Response:
    return json_answer(await _describe(api, await _wanted(api, tenant, batch_id)))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, api: ApiDep, tenant: Tenant) -> Response:
    """Requests that have not ended are given up; the output holds the others."""
    record = await _wanted(api, tenant, batch_id)
    if not await desk_of(api).cancel_batch(record):
        record = await _wanted(api, tenant, batch_id)
        if record.status is not BatchStatus.CANCELLING:
            raise ApiError(
                f"The batch has ended: it is {record.status}.",
                code="batch_not_cancellable",
                param="id",
                status=409,
                headers={"x-should-retry": "false"},
            )
    return json_answer(await _describe(api, await _wanted(api, tenant, batch_id)))


async def _wanted(api: Api, tenant: str, batch_id: str, param: str = "id") -> BatchRecord:
    """Raises ``ApiError`` 404, also for another tenant's batch."""
    desk = desk_of(api)
    record = await desk.batches.get(tenant, batch_id) if is_id(batch_id, "batch") else None
    if record is None:
        raise ApiError(f"No such batch: '{batch_id[:80]}'.", code="batch_not_found", param=param, status=404)
    return record


async def _describe(api: Api, record: BatchRecord) -> dict[str, object]:
    """OpenAI's batch object."""
    counts = {"completed": record.completed, "failed": record.failed}
    if record.ended_at is None and record.total:
        counts = dict(await desk_of(api).batches.counts(record.id))
    described = {
        "id": record.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "errors": None if record.errors is None else msgspec.json.decode(record.errors),
        "input_file_id": record.input_file_id,
        "completion_window": "24h",
        "status": record.status,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": record.created_at,
        "in_progress_at": record.in_progress_at,
        "expires_at": record.expires_at,
        "finalizing_at": record.finalizing_at,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": record.cancelling_at,
        "cancelled_at": None,
        "request_counts": {"total": record.total, **counts},
        "metadata": msgspec.json.decode(record.given),
    }
    if record.ended_at is not None:
        described[f"{record.status}_at"] = record.ended_at
    return {name: int(value) if isinstance(value, float) else value for name, value in described.items()}


def _refused(message: str, code: str, status: int = 400) -> ApiError:
    return ApiError(message, code=code, param="input_file_id", status=status)
