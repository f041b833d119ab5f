"""Lines of batches: how each is done, and how it reads in the output.

A line is what its request would have been, but for what needs a connection: no stream, no url, no job of its own.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec

from gateway.accounts.caller import Caller
from gateway.api import answer
from gateway.api.control_pictures import prepare_controlled
from gateway.api.edit_schema import from_json
from gateway.api.edits import prepare
from gateway.api.errors import ApiError, internal_error
from gateway.api.generation import Generation, plan
from gateway.api.job_answer import JobAnswer, JobError, response
from gateway.api.job_posting import most_bytes
from gateway.api.job_work import JobWork, measured
from gateway.api.limiting import check_budget
from gateway.api.models import names, resolve
from gateway.api.parsing import parse
from gateway.api.schema import GenerationBody
from gateway.api.state import Api
from gateway.database.jobs import JobRecord, JobStatus
from gateway.jobs.batch_lines import read_line
from gateway.jobs.work import Failure, Fate, Made, Postponed
from gateway.service.interfaces import BACKGROUND, Listener
from gateway.storage.room import Share
from gateway.storage.space import StoreFull

EDITS = "/v1/images/edits"
Pictures = TypeVar("Pictures")

ENDPOINTS = ("/v1/images/generations", EDITS)

FULL_SECONDS = 30.0
"""How long a line waits for room in the file store."""

UNFINISHED = {
    JobStatus.EXPIRED: ("batch_expired", "This request was not run before the completion window expired."),
    JobStatus.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was run."),
}


class LineRequest(msgspec.Struct, frozen=True):
    """What each line of a batch is told."""

    file_id: str
    """Where the lines lie."""
    caller: Caller
    """As it was when the batch was posted."""


class LineWork:
    """Does lines of batches (``gateway.jobs.work.Work``)."""

    def __init__(self, api: Api, jobs: JobWork) -> None:
        self._api = api
        self._jobs = jobs

    async def __call__(self, record: JobRecord, listener: Listener, fate: Fate) -> Made:
        with measured(self._api, record, fate) as visit:
            request = msgspec.json.decode(record.request, type=LineRequest)
            visit.caller = request.caller
            await check_budget(self._api, request.caller)
            with self._api.room.share() as share:
                try:
                    generation, uploads = await self._planned(record, request, share)
                except ApiError as error:
                    if error.code == "model_not_found" and not record.model:
                        raise self._no_such_model(error, request.caller) from None
                    raise
            visit.model, listener = generation.model, visit.heard_by(listener)
            self._promise(record, _with_output(most_bytes(generation)))
            try:
                made = await self._jobs.do(record, generation, uploads, listener, tenant=BACKGROUND)
            finally:
                self._api.storage.jobs.keep(record.id)  # what it takes from now on, the database knows
        return replace(made, nbytes=_with_output(made.nbytes))

    def _no_such_model(self, error: ApiError, caller: Caller) -> Failure:
        """Nobody served the model when the batch was read, nor does now: it is misspelt, and waiting does not help."""
        there_are = f"{error} There are: {', '.join(names(self._api, caller))}."
        return Failure(
            msgspec.json.encode(JobError.of(ApiError(there_are, code=error.code, param="model", status=404)))
        )

    def _promise(self, record: JobRecord, nbytes: int) -> None:
        try:
            self._api.storage.jobs.promise(record.id, record.tenant, nbytes)
        except StoreFull as full:
            raise Postponed(str(full), FULL_SECONDS) from None

    async def _planned(
        self, record: JobRecord, request: LineRequest, share: Share
    ) -> tuple[Generation, dict[str, bytes]]:
        raw = read_line(await self._read(record, request.file_id)).body
        settings = self._api.settings
        seconds = min(record.deadline_at - time.time(), settings.upload_timeout_seconds)
        if record.endpoint == EDITS:
            edit = from_json(memoryview(raw), settings.max_body_bytes)
            _check(edit.body)
            generation, uploads = await prepare(self._api, request.caller, edit, share, seconds, _patiently)
        else:
            body = parse(GenerationBody, bytes(raw))
            _check(body)
            if body.control or body.ip_adapter is not None:
                return await self._controlled(request, body, share, seconds)
            generation, uploads = plan(body, resolve(self._api, body.model, request.caller), settings), {}
        return replace(generation, as_url=False), uploads

    async def _controlled(
        self, request: LineRequest, body: GenerationBody, share: Share, seconds: float
    ) -> tuple[Generation, dict[str, bytes]]:
        generation, uploads = await prepare_controlled(self._api, request.caller, body, share, seconds, _patiently)
        return replace(generation, as_url=False), uploads

    async def _read(self, record: JobRecord, file_id: str) -> bytes:
        """The line, which lies in the file that the caller uploaded."""
        files = self._api.storage.files
        file = await files.find(record.tenant, file_id)
        assert record.begins is not None  # noqa: S101 # lines have places
        assert record.length is not None  # noqa: S101
        raw = None if file is None else await files.part(file, record.begins, record.length)
        if raw is None:
            raise ApiError(
                "The batch's input file was deleted before this request was run.",
                code="file_not_found",
                param="input_file_id",
                status=404,
            )
        return raw


class LineOutcome:
    """How lines read in the output (``gateway.jobs.batch_runner.Outcome``)."""

    lost = msgspec.json.encode(JobError.of(internal_error("The pictures of this request are gone.")))

    def nbytes(self, line: JobRecord) -> int:
        if line.status is not JobStatus.COMPLETED:
            return len(self.render(line, ()))
        sizes = JobAnswer.of(line).sizes
        return len(self.render(line, [b""] * len(sizes))) + sum(map(_base64_bytes, sizes))

    def render(self, line: JobRecord, pictures: Sequence[bytes]) -> bytes:
        names = {"id": line.id.replace("job_", "batch_req_", 1), "custom_id": line.custom_id}
        if line.status is JobStatus.COMPLETED:
            status, body = 200, response(line, answer.b64_items(pictures))
        elif (unfinished := UNFINISHED.get(line.status)) is not None:
            code, message = unfinished
            error = {"code": code, "message": message}
            return msgspec.json.encode({**names, "response": None, "error": error}) + b"\n"
        else:
            failed = msgspec.json.decode(line.error or b"", type=JobError)
            status, body = failed.status, msgspec.json.encode({"error": failed.error})
        answered = {"status_code": status, "request_id": line.id, "body": msgspec.Raw(body)}
        return msgspec.json.encode({**names, "response": answered, "error": None}) + b"\n"


def _check(body: GenerationBody) -> None:
    """Raises ``ApiError`` for what needs a connection."""
    wrong = {
        "stream": body.stream,
        "async": body.run_async,
        "webhook_url": body.webhook_url,
        "response_format": body.response_format == "url",
    }
    for name, is_set in wrong.items():
        if is_set:
            raise ApiError(
                f"'{name}' is not supported in a batch: its output holds finished pictures as b64_json.",
                code="unsupported_value",
                param=name,
            )


async def _patiently(work: Coroutine[object, object, Pictures]) -> Pictures:
    return await work


def _base64_bytes(nbytes: int) -> int:
    return 4 * -(-nbytes // 3)


def _with_output(nbytes: int) -> int:
    """Pictures, and the same once more in the output, as base64."""
    return nbytes + _base64_bytes(nbytes)
