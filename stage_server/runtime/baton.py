"""Who has the device. Jobs in threads of their own hand one baton around; nobody computes without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from threading import Condition
from time import monotonic

from stage_server.engine.base import JobCancelled


class Urgency(IntEnum):
    PREEMPTING = 0
    """Takes the device at the end of the running job's step."""
    NORMAL = 1
    PREVIEW = 2


@dataclass(slots=True, eq=False)
class Ticket:
    """One job's place in the queue for the device."""

    arrival: int
    urgency: Urgency = Urgency.NORMAL
    cancelled: bool = field(default=False, init=False)

    def key(self) -> tuple[Urgency, int]:
        return (self.urgency, self.arrival)


class Baton:
    """Goes to the most urgent ticket that waits, among equals to the first that arrived.

    So a paused job, which arrived before most of those that wait, resumes before them.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._owner: Ticket | None = None
        self._waiting: list[Ticket] = []

    @contextmanager
    def held(self, ticket: Ticket) -> Iterator[None]:
        """Wait for the device and give it back at the end. Raises ``JobCancelled`` when cancelled while waiting."""
        self._acquire(ticket)
        try:
            yield
        finally:
            self._release(ticket)

    def wanted(self, ticket: Ticket) -> bool:
        """The owner should ``pass_on``: a job that may interrupt this one waits."""
        if ticket.urgency is Urgency.PREEMPTING:
            return False
        with self._changed:
            return any(other.urgency is Urgency.PREEMPTING for other in self._waiting)

    def pass_on(self, ticket: Ticket) -> float:
        """Let the others go first; the seconds until the device came back. Raises ``JobCancelled``."""
        started = monotonic()
        with self._changed:
            self._waiting.append(ticket)
            self._release(ticket)
            self._wait(ticket)
        return monotonic() - started

    def cancel(self, ticket: Ticket) -> None:
        """Its wait ends with ``JobCancelled``; one that has the device keeps it until it gives it back."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify_all()

    def _acquire(self, ticket: Ticket) -> None:
        with self._changed:
            self._waiting.append(ticket)
            self._hand_over()
            self._wait(ticket)

    def _wait(self, ticket: Ticket) -> None:
        """The deadline of this wait is the job's: whoever watches it cancels the ticket."""
        self._changed.wait_for(lambda: self._owner is ticket or ticket.cancelled)
        if self._owner is not ticket:
            self._waiting.remove(ticket)
            raise JobCancelled

    def _release(self, ticket: Ticket) -> None:
        with self._changed:
            if self._owner is ticket:
                self._owner = None
                self._hand_over()

    def _hand_over(self) -> None:
        if self._owner is None and self._waiting:
            self._owner = min(self._waiting, key=Ticket.key)
            self._waiting.remove(self._owner)
            self._changed.notify_all()
