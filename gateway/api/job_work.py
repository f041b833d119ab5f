"""How jobs are done: as their requests would have been, and what becomes of them when that fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from gateway.accounts.caller import ANYBODY, Caller
from gateway.api import answer
from gateway.api.context import propagator
from gateway.api.errors import ApiError, from_service, internal_error, overloaded, storage_unavailable
from gateway.api.generation import Generation
from gateway.api.job_answer import JobAnswer, JobError, JobRequest, expired, request_id_of
from gateway.api.limiting import NOBODY_THERE, Visit, check_budget
from gateway.api.models import resolve
from gateway.api.serving import finished_pictures, perform
from gateway.api.state import Api
from gateway.database.errors import DatabaseError
from gateway.database.jobs import JobRecord, JobStatus
from gateway.database.usage import ATTEMPT
from gateway.jobs.work import Failure, Fate, Made, Postponed
from gateway.service.interfaces import DeadlineExceeded, ImageRequest, Listener, ServiceError
from gateway.storage.objects import StoreError
from gateway.storage.room import RoomTaken

AGAIN_SECONDS = 5.0
"""For what is in the way of a job, where nothing says more."""

log = logging.getLogger(__name__)


class JobWork:
    """Does posted jobs (``gateway.jobs.work.Work``)."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def __call__(self, record: JobRecord, listener: Listener, fate: Fate) -> Made:
        """Raises ``Postponed`` or ``Failure``."""
        with measured(self._api, record, fate) as visit:
            request = JobRequest.of(record)
            generation, listener = request.generation, visit.heard_by(listener)
            visit.caller = Caller(record.tenant, request.key, limits=request.limits)
            visit.model = generation.model
            await check_budget(self._api, visit.caller)
            uploads = await self._uploads(record)
            return await self.do(
                record, generation, uploads, listener, tenant=record.tenant, traceparent=request.traceparent
            )

    async def do(
        self,
        record: JobRecord,
        generation: Generation,
        uploads: Mapping[str, bytes],
        listener: Listener,
        *,
        tenant: str,
        traceparent: str = "",
    ) -> Made:
        """``tenant``: whose share of the devices it takes. Raises ``ServiceError`` or ``ApiError``."""
        api = self._api
        # Of a model that nobody serves yet, after a restart, a server may soon come. Whether the caller may use it was
        # asked when the job was posted.
        resolve(api, generation.model, ANYBODY)
        work = ImageRequest(
            request_id=request_id_of(record),
            model=generation.model,
            images=generation.images,
            deadline_seconds=max(0.0, record.deadline_at - time.time()),
            tenant=tenant,
            priority=record.priority,
            exact=generation.exact,
            enhance=generation.enhance,
            uploads=uploads,
        )
        parent = propagator.extract({"traceparent": traceparent})
        finished = await perform(api, generation, work, listener, parent)
        told_headers = answer.headers(finished, generation, with_stages=api.settings.expose_stage_timings)
        pictures = finished_pictures(finished, generation, api.settings.embed_metadata)
        kept = JobAnswer(generation, int(time.time()), finished.prompt, told_headers, tuple(map(len, pictures)))
        return Made(pictures, generation.output_format, msgspec.json.encode(kept), sum(kept.sizes))

    async def _uploads(self, record: JobRecord) -> dict[str, bytes]:
        names = record.inputs.split(",") if record.inputs else []
        uploads = await self._api.storage.jobs.inputs(record.id, names)
        if len(uploads) < len(names):
            raise internal_error("The pictures that the job was sent are gone.")
        return uploads


@contextmanager
def measured(api: Api, record: JobRecord, fate: Fate) -> Iterator[Visit]:
    """The boundary of a job: whatever ends it is raised as ``Postponed`` or ``Failure``, and what it used is recorded;
    as a request only by the attempt that ends it. Its caller and its model are for the block to fill in."""
    visit = Visit(Caller(record.tenant), "", request_id_of(record), record.endpoint.rpartition("/")[2])
    status, code = 200, ""
    try:
        yield visit
    except asyncio.CancelledError:
        status, code = (NOBODY_THERE, "cancelled") if fate.job_is_over else (ATTEMPT, "")
        raise
    except Exception as error:  # one job fails and no other
        outcome = told(error, record)
        if isinstance(outcome, Failure):
            failed = msgspec.json.decode(outcome.error, type=JobError)
            status, code = failed.status, failed.error["code"] or ""
        else:
            status = ATTEMPT
        raise outcome from error
    finally:
        if api.meter is not None and status != ATTEMPT:
            # As the job, not as this attempt: should the gateway be killed before the job's end is written down, it is
            # run again, and counts once.
            api.meter.record(msgspec.structs.replace(visit.record(status, code), id=record.id))
        elif api.meter is not None and visit.seconds:
            api.meter.record(visit.attempt_record())


def told(error: Exception, record: JobRecord) -> Postponed | Failure:
    """What becomes of a job that ended with ``error``: it waits, if the same may go well later."""
    match error:
        case Postponed() | Failure():
            return error
        case RoomTaken() | StoreError() | DatabaseError():
            refusal = overloaded(str(error), AGAIN_SECONDS) if isinstance(error, RoomTaken) else storage_unavailable()
        case ServiceError():
            refusal = from_service(error)
        case ApiError():
            refusal = error
        case _:
            log.error("%s: unexpected error", record.id, exc_info=error)
            refusal = internal_error()
    is_late = isinstance(error, DeadlineExceeded) or time.time() >= record.deadline_at
    if is_late and refusal.status in (503, 504):
        return Failure(expired(), JobStatus.EXPIRED)
    if refusal.status == 503 or refusal.code == "model_not_found":
        predicted = refusal.headers.get("x-predicted-wait-ms")
        return Postponed(
            f"{refusal.code}: {refusal}",
            float(refusal.headers.get("retry-after", AGAIN_SECONDS)),
            None if predicted is None else int(predicted) / 1000,
        )
    return Failure(msgspec.json.encode(JobError.of(refusal)))
