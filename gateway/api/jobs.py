"""``/v1/images/jobs``: how far jobs are and what came of them; each caller sees their own only."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts.caller import Scope
from gateway.api import answer
from gateway.api.body import json_answer
from gateway.api.errors import ApiError
from gateway.api.job_answer import JobAnswer, describe, request_id_of, response, with_response
from gateway.api.job_posting import desk_of, is_id
from gateway.api.keys import Tenant, with_scope
from gateway.api.pictures import url_of
from gateway.api.state import Api, ApiDep
from gateway.database.jobs import JobRecord, JobStatus

router = APIRouter(prefix="/v1/images/jobs", tags=["jobs"], dependencies=[Depends(with_scope(Scope.JOBS))])


class Selection(BaseModel):
    """The query of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


def refuse_open_lists(tenant: str, what: str) -> None:
    """Raises ``ApiError`` 403: without keys nobody can be told from anybody else."""
    if not tenant:
        raise ApiError(
            f"{what} can be listed only on a server with API keys; without, each is known to whoever knows its id.",
            code="api_key_required",
            status=403,
        )


@router.get("")
async def list_jobs(api: ApiDep, tenant: Tenant, selection: Annotated[Selection, Query()]) -> Response:
    """The caller's jobs without their answers, newest first unless ``order`` is ``asc``."""
    refuse_open_lists(tenant, "Jobs")
    after = None if selection.after is None else await _wanted(api, tenant, selection.after, "after")
    page = await desk_of(api).page(tenant, limit=selection.limit, after=after, oldest_first=selection.order == "asc")
    return json_answer(
        {
            "object": "list",
            "data": [describe(record) for record in page.records],
            "first_id": page.records[0].id if page.records else None,
            "last_id": page.records[-1].id if page.records else None,
            "has_more": page.has_more,
        }
    )


@router.get("/{job_id}")
async def retrieve_job(job_id: str, request: Request, api: ApiDep, tenant: Tenant) -> Response:
    """How far it is; once it is completed, with the body and the headers that the call would have had without it."""
    record = await _wanted(api, tenant, job_id)
    if record.status is not JobStatus.COMPLETED:
        return json_answer(await _under_way(api, record))
    kept = JobAnswer.of(record)
    if kept.generation.as_url:
        items = answer.url_items(url_of(request, api, name) for name in record.outputs.split(","))
    else:
        items = answer.b64_items(await desk_of(api).outputs(record))
    body = with_response(describe(record), response(record, items))
    return Response(body, headers=kept.headers, media_type="application/json")


async def _under_way(api: Api, record: JobRecord) -> dict[str, object]:
    """With what the scheduler foresees at this moment, if this gateway's has it."""
    standing = api.service.place(request_id_of(record))
    if standing is None:
        return describe(record, await desk_of(api).place(record))
    is_waiting = record.status is JobStatus.QUEUED and standing.ahead is not None
    foreseen = replace(record, predicted_at=time.time() + standing.seconds_left)
    return describe(foreseen, (standing.ahead or 0) + 1 if is_waiting else None)


@router.delete("/{job_id}")
async def delete_job(job_id: str, api: ApiDep, tenant: Tenant) -> Response:
    """Cancel a job that has not ended. Delete one that has, with its prompt and its pictures."""
    record = await _wanted(api, tenant, job_id)
    if record.ended_at is None:
        is_cancelled = await desk_of(api).cancel(record)
        record = await _wanted(api, tenant, job_id)  # one that ended meanwhile has pictures now
        if is_cancelled:
            return json_answer(describe(record))
    await desk_of(api).delete(record)
    return json_answer({"id": job_id, "object": "image.job.deleted", "deleted": True})


async def _wanted(api: Api, tenant: str, job_id: str, param: str = "id") -> JobRecord:
    """Raises ``ApiError`` 404, also for another tenant's job."""
    desk = desk_of(api)
    record = await desk.find(tenant, job_id) if is_id(job_id, "job") else None
    if record is None:
        raise ApiError(f"No such job: '{job_id[:80]}'.", code="job_not_found", param=param, status=404)
    return record
