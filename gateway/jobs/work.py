"""The seam between jobs and what they are about: the API says how one is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from gateway.database.jobs import JobRecord, JobStatus
from gateway.service.interfaces import Listener


@dataclass(frozen=True, slots=True)
class Made:
    pictures: Sequence[bytes]
    extension: str
    answer: bytes
    """All that the answer holds but the pictures."""
    nbytes: int
    """What it takes in the file store, or may come to take."""


class Postponed(Exception):
    """The job cannot be run now, through no fault of its own: it waits and is tried again."""

    def __init__(self, why: str, seconds: float, predicted_seconds: float | None = None) -> None:
        super().__init__(why)
        self.seconds = seconds
        self.predicted_seconds = predicted_seconds
        """Until it will be done, if that can be told."""


class Failure(Exception):
    """The job ends without pictures. ``error`` is what the caller is told, as JSON."""

    def __init__(self, error: bytes, status: JobStatus = JobStatus.FAILED) -> None:
        super().__init__(error.decode())
        self.error = error
        self.status = status


@dataclass(slots=True)
class Fate:
    """Why an attempt is cancelled."""

    job_is_over: bool = False
    """It was cancelled, or deleted. Otherwise another attempt follows: the gateway ends, or lost its lease."""


Work = Callable[[JobRecord, Listener, Fate], Awaitable[Made]]
"""Does a job. Cancelling it cancels the work on every server; ``Fate`` then says why. Raises ``Postponed`` or
``Failure``."""
