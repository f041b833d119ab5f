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
        assert paused.result(timeout=60) > 0
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
        assert paused.result(timeout=60) >= 0.01


# --- a device that is shared ------------------------------------------------------------------------------------------


def sharing(arrival: int, work: str = "256x256") -> Ticket:
    return Ticket(arrival, share=work, together=3)


def owns(baton: Baton, *tickets: Ticket) -> list[bool]:
    """Which of them have the device now; the others go on waiting."""
    found = []
    for ticket in tickets:
        was, ticket.cancelled = ticket.cancelled, True
        try:
            baton.take(ticket)
            found.append(True)
        except JobCancelled:
            found.append(False)
        ticket.cancelled = was
    return found


def test_jobs_of_equal_work_own_the_device_together_up_to_a_number() -> None:
    baton, tickets = Baton(), [sharing(number) for number in range(4)]
    in_line(baton, *tickets)
    assert owns(baton, *tickets) == [True, True, True, False]
    baton.leave(tickets[1])
    assert owns(baton, *tickets) == [True, False, True, True]


def test_other_work_and_jobs_that_do_not_share_wait_until_all_have_left() -> None:
    for other in (sharing(3, "512x512"), Ticket(3)):
        baton, first, second = Baton(), sharing(1), sharing(2)
        in_line(baton, first, second, other)
        baton.leave(first)
        assert owns(baton, second, other) == [True, False]
        baton.leave(second)
        assert owns(baton, other) == [True]


def test_nobody_joins_a_job_that_does_not_share() -> None:
    baton, alone, second = Baton(), Ticket(1), sharing(2)
    in_line(baton, alone, second)
    assert owns(baton, alone, second) == [True, False]


def test_nobody_overtakes_to_join() -> None:
    baton, first, exact, late = Baton(), sharing(1), Ticket(2), sharing(3)
    in_line(baton, first, exact, late)
    assert owns(baton, first, exact, late) == [True, False, False]
    baton.leave(first)
    assert owns(baton, exact, late) == [True, False]
    baton.leave(exact)
    assert owns(baton, late) == [True]


def test_preempting_asks_every_owner_and_waits_for_the_last() -> None:
    baton, first, second, urgent, late = Baton(), sharing(1), sharing(2), Ticket(4, Urgency.PREEMPTING), sharing(3)
    in_line(baton, first, second, urgent, late)
    assert baton.wanted(first)
    assert baton.wanted(second)
    assert owns(baton, late) == [False]
    for owner in (first, second):  # as ``pass_on`` does before it waits
        assert owns(baton, urgent) == [False]
        baton.leave(owner)
        baton.line_up(owner)
    assert owns(baton, first, second, urgent) == [False, False, True]
    baton.leave(urgent)
    assert owns(baton, first, second, late) == [True, True, True]


def test_all_to_whom_the_device_comes_back_are_told_before_any_goes_on() -> None:
    baton, first, second, urgent = Baton(), sharing(1), sharing(2), Ticket(3, Urgency.PREEMPTING)
    in_line(baton, first, second, urgent)
    told: list[str] = []

    def pauses(ticket: Ticket, name: str) -> list[str]:
        baton.pass_on(ticket, lambda: told.append(name))
        return list(told)

    with ThreadPoolExecutor(2) as threads:
        paused = [threads.submit(pauses, ticket, str(ticket.arrival)) for ticket in (first, second)]
        baton.take(urgent)
        assert told == []
        baton.leave(urgent)
        assert told == ["1", "2"]
        assert [each.result(5) for each in paused] == [["1", "2"]] * 2


def test_a_device_that_others_still_own_is_joined_while_it_is_kept() -> None:
    clock = ManualClock()
    baton, leaving, staying, late, other = Baton(clock), sharing(1), sharing(2), sharing(3), Ticket(4)
    in_line(baton, leaving, staying)
    baton.leave(leaving, KEEP)
    in_line(baton, late, other)
    assert owns(baton, staying, late) == [True, True]


def test_the_device_is_busy_while_anybody_owns_it() -> None:
    now = 100.0
    baton, first, second = Baton(lambda: now), Ticket(1), Ticket(2)
    assert baton.busy_seconds() == 0
    in_line(baton, first, second)
    now = 103.0
    assert baton.busy_seconds() == 3
    baton.leave(first)  # the second has it at once
    now = 104.0
    baton.leave(second)
    now = 150.0
    assert baton.busy_seconds() == 4
    baton.line_up(first)
    now = 152.0
    baton.leave(first)
    assert baton.busy_seconds() == 6
