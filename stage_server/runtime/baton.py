"""Who has the device. Jobs in threads of their own hand one baton around; nobody computes without it."""

from __future__ import annotations

from collections.abc import Callable
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

    So a paused job, which arrived before most of those in line, resumes before them. A job that leaves may keep the
    device for preempting ones for a while, so that nothing resumes in between.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._changed = Condition()
        self._owner: Ticket | None = None
        self._line: list[Ticket] = []
        self._keeper: Ticket | None = None
        """It left, and keeps the device for preempting tickets until …"""
        self._kept_until = 0.0

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
            while self._owner is not ticket and not ticket.cancelled:
                self._changed.wait(self._kept_for())
                self._hand_over()
            if self._owner is not ticket:
                raise JobCancelled

    def leave(self, ticket: Ticket, keep_seconds: float = 0.0) -> None:
        """Out of the line, or the device free for the next; for so long only for a preempting one."""
        with self._changed:
            if ticket in self._line:
                self._line.remove(ticket)
            if self._owner is ticket:
                self._owner = None
                if keep_seconds > 0 and not ticket.cancelled:
                    self._keeper, self._kept_until = ticket, self._clock() + keep_seconds
                    self._changed.notify_all()  # whoever waits does so until then at most
                self._hand_over()

    def wanted(self, ticket: Ticket) -> bool:
        """The owner should ``pass_on``: a job that may interrupt this one is in line."""
        if ticket.urgency is Urgency.PREEMPTING:
            return False
        with self._changed:
            return any(other.urgency is Urgency.PREEMPTING for other in self._line)

    def pass_on(self, ticket: Ticket) -> float:
        """Let the more urgent go first; the seconds until the device came back. Raises ``JobCancelled``."""
        started = self._clock()
        with self._changed:
            self._line.append(ticket)
            self._owner = None
            self._hand_over()
        self.take(ticket)
        return self._clock() - started

    def cancel(self, ticket: Ticket) -> None:
        """Its wait ends with ``JobCancelled``; it keeps the device no longer, but has it until it leaves."""
        with self._changed:
            ticket.cancelled = True
            if self._keeper is ticket:
                self._keeper = None
                self._hand_over()
            self._changed.notify_all()

    def _hand_over(self) -> None:
        if self._owner is not None or not self._line:
            return
        first = min(self._line, key=Ticket.key)
        if first.urgency is not Urgency.PREEMPTING and self._kept_for():
            return
        self._keeper = None
        self._owner = first
        self._line.remove(first)
        self._changed.notify_all()

    def _kept_for(self) -> float | None:
        """Seconds that a job which has left still keeps the device; None if none does."""
        return None if self._keeper is None else max(0.0, self._kept_until - self._clock())
