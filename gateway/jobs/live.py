"""How far the attempts are that this gateway runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gateway.database.job_queue import Advance, Attempt
from gateway.database.jobs import JobRecord, JobStatus
from gateway.service.interfaces import Admitted, News, Progress, Ready


@dataclass(slots=True)
class _Course:
    pictures: int
    done: dict[int, int] = field(default_factory=dict)
    """Picture → steps of it that are done."""
    each: int = 0
    """Steps of one picture."""
    predicted_at: float | None = None
    is_news: bool = False
    """Since the database was told."""


class Live:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._courses: dict[Attempt, _Course] = {}

    def begin(self, attempt: Attempt, pictures: int) -> None:
        self._courses[attempt] = _Course(pictures)

    def end(self, attempt: Attempt) -> None:
        self._courses.pop(attempt, None)

    def hear(self, attempt: Attempt, news: News) -> None:
        course = self._courses.get(attempt)
        if course is None:
            return
        match news:
            case Admitted(predicted_seconds=seconds):
                course.predicted_at = self._clock() + seconds
            case Progress(image, step, steps):
                # Of a job that runs again after a loss the steps go back, too: that is how far it is.
                course.done[image], course.each = step, steps
            case Ready(image=image):
                course.done[image] = course.each
            case _:
                return
        course.is_news = True

    def news(self) -> list[Advance]:
        """What has changed since this was asked last."""
        changed = [attempt for attempt, course in self._courses.items() if course.is_news]
        for attempt in changed:
            self._courses[attempt].is_news = False
        return [self._advance(attempt) for attempt in changed]

    def told_again(self, news: list[Advance]) -> None:
        """The database could not be told."""
        for each in news:
            if each.attempt in self._courses:
                self._courses[each.attempt].is_news = True

    def latest(self, record: JobRecord) -> JobRecord:
        """With what this gateway knows beyond the database."""
        attempt = Attempt(record.id, record.attempt)
        if record.ended_at is not None or attempt not in self._courses:
            return record
        now = self._advance(attempt)
        status = JobStatus.IN_PROGRESS if now.step else record.status
        begun = record.in_progress_at or (self._clock() if now.step else None)
        return replace(
            record,
            step=now.step,
            steps=now.steps,
            predicted_at=now.predicted_at,
            status=status,
            in_progress_at=begun,
        )

    def _advance(self, attempt: Attempt) -> Advance:
        course = self._courses[attempt]
        return Advance(attempt, sum(course.done.values()), course.pictures * course.each, course.predicted_at)
