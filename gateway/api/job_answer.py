"""What a job is asked for and answers, as it is kept; and what callers are told of it."""

from __future__ import annotations

import msgspec

from gateway.accounts.caller import Limits
from gateway.api import answer
from gateway.api.errors import ApiError
from gateway.api.generation import Generation
from gateway.database.jobs import JobRecord
from gateway.service.interfaces import PromptRead


class JobRequest(msgspec.Struct, frozen=True):
    generation: Generation
    key: str = ""
    """Id of the key that it was posted with, whose use it is."""
    traceparent: str = ""
    """Of the request that posted it."""
    limits: Limits = Limits()
    """The key's own, as they were then."""

    @classmethod
    def of(cls, record: JobRecord) -> JobRequest:
        return msgspec.json.decode(record.request, type=cls)


class JobAnswer(msgspec.Struct, frozen=True):
    """Of a completed job, but for its pictures."""

    generation: Generation
    created: int
    prompt: PromptRead
    headers: dict[str, str]
    sizes: tuple[int, ...]
    """Bytes of the pictures."""

    @classmethod
    def of(cls, record: JobRecord) -> JobAnswer:
        return msgspec.json.decode(record.answer or b"", type=cls)


class JobError(msgspec.Struct, frozen=True):
    """What the synchronous call would have been refused with."""

    status: int
    error: dict[str, str | None]

    @classmethod
    def of(cls, error: ApiError) -> JobError:
        return cls(error.status, error.envelope())


def request_id_of(record: JobRecord) -> str:
    """Under which the service knows the job's latest attempt."""
    return f"{record.id}-{record.attempt}"


def expired() -> bytes:
    """The error of jobs whose deadline passed."""
    message = "The job was not done before its deadline."
    return msgspec.json.encode(JobError.of(ApiError(message, code="timeout", status=504, kind="server_error")))


def describe(record: JobRecord, place: int | None = None) -> dict[str, object]:
    """A job as callers see it, but for its answer."""
    error = None if record.error is None else msgspec.json.decode(record.error, type=JobError).error
    return {
        "id": record.id,
        "object": "image.job",
        "endpoint": record.endpoint,
        "model": record.model,
        "status": record.status,
        "created_at": int(record.created_at),
        "in_progress_at": _seconds(record.in_progress_at),
        "completed_at": _seconds(record.ended_at),
        "deadline_at": int(record.deadline_at),
        "expires_at": _seconds(record.expires_at),
        "predicted_completion_at": _seconds(record.predicted_at) if record.ended_at is None else None,
        "queue_position": place,
        "progress": {"step": record.step, "steps": record.steps} if record.steps else None,
        "error": error,
    }


def with_response(described: dict[str, object], response: bytes) -> bytes:
    """Pictures are copied once more, and never become Python text."""
    return b'%b,"response":%b}' % (msgspec.json.encode(described).removesuffix(b"}"), response)


def response(record: JobRecord, items: list[answer.Item]) -> bytes:
    """The very body that the synchronous call would have had."""
    kept = JobAnswer.of(record)
    return answer.join(items, kept.generation, kept.created, kept.prompt)


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
