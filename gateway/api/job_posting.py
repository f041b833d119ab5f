"""``async: true``: what has been planned becomes a job, and the caller gets its number."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts.caller import Caller, Scope
from gateway.addresses import UrlRefused
from gateway.api import answer
from gateway.api.body import json_answer
from gateway.api.deadline import own_seconds
from gateway.api.errors import ApiError, storage_full
from gateway.api.generation import Generation
from gateway.api.job_answer import JobRequest, describe
from gateway.api.keys import missing_scope
from gateway.api.limiting import working
from gateway.api.priority import priority
from gateway.api.state import Api
from gateway.database.jobs import JobRecord
from gateway.jobs.desk import JobDesk
from gateway.storage.space import StoreFull
from wire.trace import inject

BYTES_PER_PIXEL = 3
"""Of a PNG that cannot be compressed."""
OVERHEAD_BYTES = 64 << 10
"""Of one picture: its blocks, its metadata."""


async def post_job(
    request: Request, api: Api, tenant: str, generation: Generation, uploads: Mapping[str, bytes]
) -> Response:
    """202 once the job is committed. Raises ``ApiError``, ``DatabaseError`` or ``StoreError``."""
    desk = desk_of(api, "async")
    if Scope.JOBS not in request.state.caller.scopes:
        raise missing_scope(Scope.JOBS)
    if generation.webhook_url is not None:
        await _check_webhook(desk, generation.webhook_url)
    record = _record(request, api, tenant, generation, uploads)
    try:
        async with working(request, api, generation.model, len(generation.images)) as visit:
            await desk.accept(record, uploads)
            visit.goes_on = True
    except StoreFull as full:
        raise storage_full(full) from None
    described = json_answer(describe(record, await desk.place(record)), 202)
    described.headers.update(answer.early_headers(generation))
    described.headers["location"] = f"/v1/images/jobs/{record.id}"
    return described


def desk_of(api: Api, param: str | None = None) -> JobDesk:
    """Raises ``ApiError`` where jobs cannot be kept."""
    if api.desk is None:
        raise ApiError("This server keeps no jobs.", code="unsupported_parameter", param=param)
    return api.desk


def is_id(text: str, kind: str) -> bool:
    """Whether it can be one. Other texts are not looked for: databases choke on some."""
    return re.fullmatch(rf"{kind}_[0-9a-f]{{32}}", text, re.ASCII) is not None


def _record(request: Request, api: Api, tenant: str, generation: Generation, uploads: Mapping[str, bytes]) -> JobRecord:
    now = time.time()
    caller: Caller = request.state.caller
    limits = [api.settings.job_timeout_seconds, own_seconds(request.headers)]
    return JobRecord(
        id=f"job_{secrets.token_hex(16)}",
        tenant=tenant,
        endpoint=request.url.path,
        model=generation.model,
        request=msgspec.json.encode(JobRequest(generation, caller.key, inject(), caller.limits)),
        created_at=now,
        deadline_at=now + min(seconds for seconds in limits if seconds is not None),
        priority=priority(request.headers),
        pictures=len(generation.images),
        nbytes=most_bytes(generation) + sum(map(len, uploads.values())),
        webhook_url=generation.webhook_url,
    )


def most_bytes(generation: Generation) -> int:
    """That the finished pictures may come to take."""
    size = generation.final_size
    return len(generation.images) * (size.width * size.height * BYTES_PER_PIXEL + OVERHEAD_BYTES)


async def _check_webhook(desk: JobDesk, url: str) -> None:
    if desk.webhooks is None:
        raise ApiError(
            "This server calls no webhooks: its operator has given it no key to sign them with.",
            code="unsupported_parameter",
            param="webhook_url",
        )
    try:
        await desk.webhooks.check(url)
    except UrlRefused as refusal:
        raise ApiError(f"The 'webhook_url' {refusal}.", code="invalid_webhook_url", param="webhook_url") from None
