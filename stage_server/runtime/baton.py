"""Who has the device. Jobs in threads of their own hand one baton around; nobody computes without it.

One job owns it, or several that share it. ``scheduler.sim.device`` is the same in virtual time; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import IntEnum
from threading import Condition
from time import monotonic

from stage_server.engine.base import JobCancelled

Work = Hashable
"""Role, workflow, size, guidance and adapters of a job: only jobs whose steps cost the same share the device."""


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
    share: Work | None = None
    """It may have the device together with tickets of equal ``share``; None: alone, as every preempting ticket has."""
    together: int = 1
    """So many of them at once."""
    cancelled: bool = field(default=False, init=False)
    returned: Callable[[], None] = field(default=lambda: None, init=False)
    """Called, with the baton's lock held, when the device comes back to it."""

    def key(self) -> tuple[Urgency, int]:
        return (self.urgency, self.arrival)


class Baton:
    """Goes to the first in line: the most urgent ticket, among equals the one that arrived first. Nobody overtakes.

    - While nobody owns the device, the first in line gets it.
    - While it is owned, the first in line joins the owners if it shares, all of them have a ``share`` equal to its own,
      and they are fewer than its ``together``. Preempting tickets share with nobody. Otherwise it waits, and all behind
      it, until it can or the last owner has left or passed on.
    - A preempting ticket in line makes every owner that is not preempting pass on at the end of its step, each for
      itself; it has the device once all of them have, and the preempting ones have left.
    - Who passes on stands in line by the time of its arrival, so before most, and joins the others again as above.
    - A job that leaves may keep the device for preempting ones for a while, so that nothing resumes in between: nobody
      owns it, and until that time is over only a preempting ticket gets it. While others own it still, it may be joined
      as ever. Who leaves with such a wish replaces that of the one before, whoever gets the device ends it, and a
      cancelled job has none.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._changed = Condition()
        self._owners: list[Ticket] = []
        self._line: list[Ticket] = []
        self._keeper: Ticket | None = None
        """It left, and keeps the device for preempting tickets until …"""
        self._kept_until = 0.0
        self._arrivals = 0
        self._busy_seconds = 0.0
        """Until the device was last free."""
        self._busy_since: float | None = None

    def arrive(self) -> int:
        """The number of a job that has come now, of whichever server: its place among tickets of one urgency."""
        with self._changed:
            self._arrivals += 1
            return self._arrivals

    @property
    def latest(self) -> int:
        """Number of the job that came last."""
        return self._arrivals

    def busy_seconds(self) -> float:
        """For which anybody has owned the device so far."""
        with self._changed:
            under_way = 0.0 if self._busy_since is None else self._clock() - self._busy_since
            return self._busy_seconds + under_way

    def line_up(self, ticket: Ticket) -> None:
        """Does not wait. Every ``line_up`` needs its ``leave``, whatever happens in between."""
        with self._changed:
            self._line.append(ticket)
            self._hand_over()

    def take(self, ticket: Ticket) -> None:
        """Wait until a ticket in line owns the device. Raises ``JobCancelled``.

        The deadline of this wait is the job's: whoever watches that cancels the ticket.
        """
        with self._changed:
            while ticket not in self._owners and not ticket.cancelled:
                self._changed.wait(self._kept_for())
                self._hand_over()
            if ticket not in self._owners:
                raise JobCancelled

    def leave(self, ticket: Ticket, keep_seconds: float = 0.0) -> None:
        """Out of the line, or off the device; for so long only a preempting one gets it."""
        with self._changed:
            if ticket in self._line:
                self._line.remove(ticket)
            if ticket in self._owners:
                self._owners.remove(ticket)
                if keep_seconds > 0 and not ticket.cancelled:
                    self._keeper, self._kept_until = ticket, self._clock() + keep_seconds
                    self._changed.notify_all()  # whoever waits does so until then at most
            self._hand_over()

    def wanted(self, ticket: Ticket) -> bool:
        """This owner should ``pass_on``: a job that may interrupt it is in line."""
        if ticket.urgency is Urgency.PREEMPTING:
            return False
        with self._changed:
            return any(other.urgency is Urgency.PREEMPTING for other in self._line)

    def pass_on(self, ticket: Ticket, returned: Callable[[], None] = lambda: None) -> float:
        """Let the more urgent go first; the seconds until the device came back. Raises ``JobCancelled``.

        ``returned`` is called at that moment, on any thread: before any of those to whom it comes back at once goes on.
        """
        started = self._clock()
        with self._changed:
            ticket.returned = returned
            self._owners.remove(ticket)
            self._line.append(ticket)
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
        """After every change of owners or line."""
        self._fill()
        if self._owners and self._busy_since is None:
            self._busy_since = self._clock()
        elif not self._owners and self._busy_since is not None:
            self._busy_seconds += self._clock() - self._busy_since
            self._busy_since = None

    def _fill(self) -> None:
        if self._kept_for() == 0:
            self._keeper = None
        while self._line:
            first = min(self._line, key=Ticket.key)
            if not self._may_own(first):
                return
            self._keeper = None
            self._owners.append(first)
            self._line.remove(first)
            first.returned()
            self._changed.notify_all()

    def _may_own(self, ticket: Ticket) -> bool:
        if not self._owners:
            return ticket.urgency is Urgency.PREEMPTING or self._keeper is None
        equal = ticket.share is not None and all(owner.share == ticket.share for owner in self._owners)
        return equal and len(self._owners) < ticket.together

    def _kept_for(self) -> float | None:
        """Seconds that a job which has left still keeps the device; None if none does."""
        return None if self._keeper is None else max(0.0, self._kept_until - self._clock())
