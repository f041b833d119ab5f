"""How a job ends in the database: kept for how long, and what its webhook is told."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import msgspec

from gateway.database.deliveries import Delivery
from gateway.database.jobs import Ending, JobRecord, JobStatus

EVENT = "image.job"


class Endings:
    def __init__(self, keep_seconds: float, expired: bytes, clock: Callable[[], float] = time.time) -> None:
        """``expired``: the error of jobs whose deadline passed, as JSON."""
        self._keep_seconds = keep_seconds
        self.expired = expired
        self._clock = clock

    def make(
        self,
        record: JobRecord,
        status: JobStatus,
        *,
        answer: bytes | None = None,
        error: bytes | None = None,
        outputs: str = "",
        nbytes: int = 0,
    ) -> Ending:
        now = self._clock()
        event = (
            None if record.webhook_url is None else event_of(record.id, f"{EVENT}.{status}", record.webhook_url, now)
        )
        # Lines of a batch are kept until they are in its output.
        expires_at = None if record.batch_id is not None else now + self._keep_seconds
        return Ending(status, now, expires_at, outputs, nbytes, answer, error, event)


def event_of(subject: str, kind: str, url: str, now: float) -> Delivery:
    """As OpenAI's webhooks: they say what happened, and the receiver asks for the rest with its key."""
    event_id = f"evt_{secrets.token_hex(16)}"
    payload = {"id": event_id, "object": "event", "type": kind, "created_at": int(now), "data": {"id": subject}}
    return Delivery(event_id, subject, url, msgspec.json.encode(payload).decode(), now)
