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
