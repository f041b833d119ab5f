"""Who gets the device. ``take`` returns at once to the owner, so order shows without threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from stage_server.engine.base import JobCancelled
from stage_server.runtime.baton import Baton, Ticket, Urgency


def in_line(baton: Baton, *tickets: Ticket) -> None:
    for ticket in tickets:
        baton.line_up(ticket)


def test_first_come_first_served_whoever_lines_up_first() -> None:
    baton, first, second, third = Baton(), Ticket(1), Ticket(2), Ticket(3)
    in_line(baton, first, third, second)
    for ticket in (first, second, third):
        baton.take(ticket)
        assert not baton.wanted(ticket)
        baton.leave(ticket)


def test_urgent_before_normal_before_preview() -> None:
    baton, running = Baton(), Ticket(1)
    preview, normal, urgent = Ticket(2, Urgency.PREVIEW), Ticket(3), Ticket(4, Urgency.PREEMPTING)
    in_line(baton, running, preview, normal, urgent)
    assert baton.wanted(running)
    for ticket in (running, urgent, normal, preview):
        baton.take(ticket)
        baton.leave(ticket)


def test_urgent_jobs_do_not_interrupt_each_other() -> None:
    baton, first, second = Baton(), Ticket(1, Urgency.PREEMPTING), Ticket(2, Urgency.PREEMPTING)
    in_line(baton, first, second)
    assert not baton.wanted(first)


def test_a_job_that_passed_the_baton_on_gets_it_back_before_later_ones() -> None:
    baton, running, later, urgent = Baton(), Ticket(1), Ticket(2), Ticket(3, Urgency.PREEMPTING)
    in_line(baton, running, later, urgent)
    with ThreadPoolExecutor(1) as threads:
        paused = threads.submit(baton.pass_on, running)
        baton.take(urgent)
        assert not paused.done()
        baton.leave(urgent)
        assert paused.result(timeout=5) > 0
    baton.leave(running)
    baton.take(later)


def test_a_cancelled_wait_ends_and_frees_the_place() -> None:
    baton, running, cancelled, later = Baton(), Ticket(1), Ticket(2), Ticket(3)
    in_line(baton, running, cancelled, later)
    baton.cancel(cancelled)
    with pytest.raises(JobCancelled):
        baton.take(cancelled)
    baton.leave(cancelled)
    baton.leave(running)
    baton.take(later)


def test_a_paused_job_can_be_cancelled() -> None:
    baton, running, urgent = Baton(), Ticket(1), Ticket(2, Urgency.PREEMPTING)
    in_line(baton, running, urgent)
    baton.cancel(running)
    with pytest.raises(JobCancelled):
        baton.pass_on(running)
    baton.leave(running)
    baton.take(urgent)


# --- a device that is kept --------------------------------------------------------------------------------------------

KEEP = 0.5


class ManualClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def kept() -> tuple[Baton, ManualClock, Ticket, Ticket]:
    """A preempting job has left and keeps the device; the baton, its clock, that job, and one that waits."""
    clock = ManualClock()
    baton, first, waiting = Baton(clock), Ticket(2, Urgency.PREEMPTING), Ticket(1)
    in_line(baton, first, waiting)
    baton.leave(first, KEEP)
    return baton, clock, first, waiting


def has_it(baton: Baton, ticket: Ticket) -> bool:
    """Without waiting: a cancelled ticket does not wait."""
    ticket.cancelled = True
    try:
        baton.take(ticket)
    except JobCancelled:
        return False
    return True


def test_only_a_preempting_job_gets_a_device_that_is_kept() -> None:
    baton, _, _, waiting = kept()
    following = Ticket(3, Urgency.PREEMPTING)
    baton.line_up(following)
    baton.take(following)
    baton.leave(following)
    baton.take(waiting)


def test_a_device_is_not_kept_for_longer_than_it_was_said() -> None:
    baton, clock, _, waiting = kept()
    clock.now += KEEP / 2
    baton.line_up(Ticket(4))
    assert not has_it(baton, waiting)
    waiting.cancelled = False
    clock.now += KEEP / 2
    baton.take(waiting)


def test_a_cancelled_job_keeps_no_device() -> None:
    baton, _, first, waiting = kept()
    baton.cancel(first)
    baton.take(waiting)
    baton, running = Baton(ManualClock()), Ticket(1)
    in_line(baton, running, waiting)
    baton.cancel(running)
    baton.leave(running, KEEP)
    baton.take(waiting)


def test_whoever_waits_for_a_kept_device_wakes_by_itself() -> None:
    baton, running, urgent = Baton(), Ticket(1), Ticket(2, Urgency.PREEMPTING)
    in_line(baton, running, urgent)
    with ThreadPoolExecutor(1) as threads:
        paused = threads.submit(baton.pass_on, running)
        baton.take(urgent)
        baton.leave(urgent, 0.01)
        assert paused.result(timeout=5) >= 0.01
