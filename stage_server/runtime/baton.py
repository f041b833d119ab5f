"""Who has the device. Jobs in threads of their own hand one baton around; nobody computes without it."""

from __future__ import annotations

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
    """One job's place in the line for the device."""

    arrival: int
    urgency: Urgency = Urgency.NORMAL
    cancelled: bool = field(default=False, init=False)

    def key(self) -> tuple[Urgency, int]:
        return (self.urgency, self.arrival)


class Baton:
    """Goes to the most urgent ticket in line, among equals to the first that arrived.

    So a paused job, which arrived before most of those in line, resumes before them.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._owner: Ticket | None = None
        self._line: list[Ticket] = []

    def line_up(self, ticket: Ticket) -> None:
        """Does not wait. Every ``line_up`` needs its ``leave``, whatever happens in between."""
        with self._changed:
            self._line.append(ticket)
            self._hand_over()

    def take(self, ticket: Ticket) -> None:
        """Wait until the device belongs to a ticket in line. Raises ``JobCancelled``.

        The deadline of this wait is the job's: whoever watches that cancels the ticket.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._owner is ticket or ticket.cancelled)
            if self._owner is not ticket:
                raise JobCancelled

    def leave(self, ticket: Ticket) -> None:
        """Out of the line, or the device free for the next."""
        with self._changed:
            if ticket in self._line:
                self._line.remove(ticket)
            if self._owner is ticket:
                self._owner = None
                self._hand_over()

    def wanted(self, ticket: Ticket) -> bool:
        """The owner should ``pass_on``: a job that may interrupt this one is in line."""
        if ticket.urgency is Urgency.PREEMPTING:
            return False
        with self._changed:
            return any(other.urgency is Urgency.PREEMPTING for other in self._line)

    def pass_on(self, ticket: Ticket) -> float:
        """Let the more urgent go first; the seconds until the device came back. Raises ``JobCancelled``."""
        started = monotonic()
        with self._changed:
            self._line.append(ticket)
            self._owner = None
            self._hand_over()
        self.take(ticket)
        return monotonic() - started

    def cancel(self, ticket: Ticket) -> None:
        """Its wait ends with ``JobCancelled``; one that has the device keeps it until it leaves."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify_all()

    def _hand_over(self) -> None:
        if self._owner is None and self._line:
            self._owner = min(self._line, key=Ticket.key)
            self._line.remove(self._owner)
            self._changed.notify_all()
