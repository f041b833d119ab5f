"""Calls that meet: everybody gets the outcome of its own, whoever comes, goes, fails or is stopped meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Barrier, Event

import pytest

from stage_server.engine.base import JobCancelled
from stage_server.engine.rendezvous import Call, Rendezvous

PATIENCE = 240.0


def answer_all(calls: Sequence[Call[int]]) -> None:
    for call in calls:
        call.succeed(call.work * 10)


def test_a_lone_job_waits_for_nobody() -> None:
    meeting = Rendezvous(answer_all)
    with meeting.attended():
        call = meeting.call(7)
    assert (call.result, call.company) == (70, 1)


def test_those_who_take_part_are_computed_in_one_round() -> None:
    rounds: list[int] = []

    def compute(calls: Sequence[Call[int]]) -> None:
        rounds.append(len(calls))
        answer_all(calls)

    meeting, ready = Rendezvous(compute), Barrier(3)

    def job(number: int) -> list[object]:
        with meeting.attended():
            ready.wait(PATIENCE)
            return [meeting.call(number + step).result for step in (1, 2)]

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(job, (0, 10, 20))) == [[10, 20], [110, 120], [210, 220]]
    assert rounds == [3, 3]


def test_who_leaves_or_is_away_is_not_waited_for() -> None:
    meeting = Rendezvous(answer_all)
    left, is_away, back = Event(), Event(), Event()

    def quits() -> None:
        with meeting.attended():
            assert left.wait(PATIENCE)
            raise JobCancelled

    def pauses() -> int:
        with meeting.attended():
            with meeting.away():
                is_away.set()
                assert back.wait(PATIENCE)
            return meeting.call(1).company

    with ThreadPoolExecutor(3) as threads, meeting.attended():
        quitting, pausing = threads.submit(quits), threads.submit(pauses)
        assert is_away.wait(PATIENCE)
        left.set()
        with pytest.raises(JobCancelled):
            quitting.result(PATIENCE)
        assert meeting.call(2).result == 20
        back.set()
        assert meeting.call(3).result == 30
    assert pausing.result(PATIENCE) in (1, 2)


def test_those_who_are_called_back_together_go_on_together() -> None:
    """Whichever of their threads wakes first."""
    rounds: list[int] = []

    def compute(calls: Sequence[Call[int]]) -> None:
        rounds.append(len(calls))
        answer_all(calls)

    meeting = Rendezvous(compute)
    with ThreadPoolExecutor(1) as threads, meeting.attended(), meeting.attended():
        with meeting.away() as back, meeting.away() as others_back:
            back()
            others_back()
            back()  # once is enough
            early = threads.submit(meeting.call, 1)
        assert meeting.call(2).result == 20
        assert early.result(PATIENCE).result == 10
    assert rounds == [2]


def test_a_fault_of_the_computation_reaches_everybody_and_leaves_nobody_waiting() -> None:
    def compute(calls: Sequence[Call[int]]) -> None:
        calls[0].succeed("in time")
        raise MemoryError("no more")

    meeting, ready = Rendezvous(compute), Barrier(2)

    def job(number: int) -> object:
        with meeting.attended():
            ready.wait(PATIENCE)
            try:
                return meeting.call(number).result
            except MemoryError as error:
                return str(error)

    with ThreadPoolExecutor(2) as threads:
        assert sorted(map(str, threads.map(job, (1, 2)))) == ["in time", "no more"]


def test_an_outcome_that_was_forgotten_is_a_fault() -> None:
    meeting: Rendezvous[int] = Rendezvous(lambda _: None)
    with meeting.attended(), pytest.raises(AssertionError, match="without an outcome"):
        meeting.call(1)


class Crowd:
    """Jobs of random lengths that come one after the other and pause; one fails in a call, one is stopped."""

    FAILS, STOPS, JOBS = 2, 3, 6

    def __init__(self, seed: int) -> None:
        chance = Random(seed)
        self.meeting = Rendezvous(self.compute)
        self.fails_at, self.stops_at = chance.randint(0, 5), chance.randint(0, 5)
        self.plans = [Random(chance.random()) for _ in range(self.JOBS)]
        self.computing = False

    def compute(self, calls: Sequence[Call[tuple[int, int]]]) -> None:
        assert not self.computing, "two rounds at once"
        self.computing = True
        for call in calls:
            if call.work == (self.FAILS, self.fails_at):
                call.fail(ValueError(f"at {self.fails_at}"))
            else:
                call.succeed((*call.work, "done"))
        self.computing = False

    def job(self, number: int) -> list[object]:
        plan, results = self.plans[number], list[object]()
        with self.meeting.attended():
            for step in range(plan.randint(1, 12)):
                if (number, step) == (self.STOPS, self.stops_at):
                    raise JobCancelled
                if plan.random() < 0.2:
                    with self.meeting.away() as back:
                        if plan.random() < 0.5:
                            back()
                call = self.meeting.call((number, step))
                assert 1 <= call.company <= self.JOBS
                results.append(call.result)
        return results


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_everybody_gets_its_own(seed: int) -> None:
    crowd = Crowd(seed)
    with ThreadPoolExecutor(crowd.JOBS) as threads:
        running = [threads.submit(crowd.job, number) for number in range(crowd.JOBS)]
    for number, each in enumerate(running):
        error = each.exception(PATIENCE)
        if error is None:
            assert each.result() == [(number, step, "done") for step in range(len(each.result()))]
        else:
            assert number == {ValueError: crowd.FAILS, JobCancelled: crowd.STOPS}[type(error)]
