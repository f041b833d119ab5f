"""The simulated device and a stage server's baton: one rule, written twice, on random jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from threading import Condition

import pytest

from scheduler.sim.clock import Clock
from scheduler.sim.device import Device, Task
from stage_server.engine.base import JobCancelled
from stage_server.runtime.baton import Baton, Ticket, Urgency

SCHEDULES = 400
Log = list[tuple[str, int, float]]


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Task):
    number: int
    arrives: float
    cancelled_at: float
    is_over: bool = False
    ticket: Ticket = field(init=False)

    def __post_init__(self) -> None:
        urgency = Urgency.PREEMPTING if self.urgent else Urgency.NORMAL
        self.ticket = Ticket(self.number, urgency, self.kind, self.together)


def jobs(seed: int) -> list[Job]:
    """A few at a time, some urgent, some that share, some cancelled before, during or after their work."""
    rng = Random(seed)
    now, made = 0.0, []
    pace = {kind: rng.uniform(0.1, 1.5) for kind in ("small", "large")}
    for number in range(rng.randint(2, 12)):
        now += rng.expovariate(0.4)
        urgent = rng.random() < 0.3
        kind = None if urgent else rng.choice((None, "small", "small", "large"))
        made.append(
            Job(
                steps=rng.randint(1, 5),
                step_seconds=pace[kind] if kind else rng.uniform(0.1, 1.5),
                kind=kind,
                together=3,
                marginal=0.4,
                urgent=urgent,
                keep_seconds=rng.choice((0.0, rng.uniform(0.1, 3.0))),
                number=number,
                arrives=now,
                cancelled_at=now + rng.expovariate(0.2) if rng.random() < 0.3 else 1e6,
            )
        )
    return made


class Simulated:
    def __init__(self, clock: Clock) -> None:
        self.log: Log = []
        self._clock = clock
        self._device = Device(clock, clock.after, self)
        self._owners: set[int] = set()

    def arrive(self, job: Job) -> None:
        self._device.line_up(job)

    def cancel(self, job: Job) -> None:
        if job.is_over:
            self._device.release(job)
        else:
            self._device.stop(job)

    def _note(self, what: str, job: Task) -> None:
        assert isinstance(job, Job)
        self.log.append((what, job.number, round(self._clock.now, 6)))

    def started(self, task: Task) -> None:
        self._note("joins" if self._owners else "has the device", task)
        self._owners.add(id(task))

    def paused(self, task: Task) -> None:
        self._owners.discard(id(task))
        self._note("pauses", task)

    def stopped(self, task: Task) -> None:
        self._owners.discard(id(task))
        self._note("stops", task)

    def ended(self, task: Task) -> None:
        assert isinstance(task, Job)
        self._owners.discard(id(task))
        task.is_over = True
        self._note("ends", task)

    def progressed(self, task: Task, step_seconds: float) -> None: ...

    def showed(self, task: Task) -> None: ...

    def busy(self, task: Task, since: float) -> None: ...


class Blocked(Exception):
    """A thread would wait here."""


class Impatient(Condition):
    """Wakes once for nothing, then says that there is nothing to wake for."""

    has_woken = False

    def wait(self, timeout: float | None = None) -> bool:
        self.has_woken = not self.has_woken
        if self.has_woken:
            return False
        raise Blocked


class Real:
    """Does with the baton what workers' threads do, a step at a time, and as at the port owners step together."""

    def __init__(self, clock: Clock) -> None:
        self.log: Log = []
        self._clock = clock
        self._baton = Baton(lambda: clock.now)
        self._waiting: list[Job] = []
        self._owners: list[Job] = []
        self._stepping: tuple[Job, ...] = ()
        self._is_settling = False

    def arrive(self, job: Job) -> None:
        self._baton.line_up(job.ticket)
        self._waiting.append(job)
        self._settle()

    def cancel(self, job: Job) -> None:
        self._baton.cancel(job.ticket)
        self._settle()

    def _note(self, what: str, job: Job) -> None:
        self.log.append((what, job.number, round(self._clock.now, 6)))

    def _settle(self) -> None:
        """Every thread that waits for the baton looks whether it has it; then the next step begins."""
        while self._somebody_stops():
            pass
        if self._owners and not self._stepping and not self._is_settling:
            self._stepping = tuple(self._owners)
            pace = self._owners[0].step_seconds * (1 + self._owners[0].marginal * (len(self._stepping) - 1))
            self._clock.after(pace, self._step_done)

    def _somebody_stops(self) -> bool:
        """Who does may have been in the way of others."""
        for job in sorted(self._waiting, key=lambda job: job.ticket.key()):
            try:
                self._baton.take(job.ticket)
            except Blocked:
                continue
            except JobCancelled:
                self._waiting.remove(job)
                self._note("stops", job)
                self._baton.leave(job.ticket)
                return True
            self._waiting.remove(job)
            self._note("joins" if self._owners else "has the device", job)
            self._owners.append(job)
        return False

    def _leave(self, job: Job, keep_seconds: float = 0.0) -> None:
        self._baton.leave(job.ticket, keep_seconds)
        self._clock.after(keep_seconds, self._settle)
        self._settle()

    def _step_done(self) -> None:
        stepped, self._stepping, self._is_settling = self._stepping, (), True
        for job in tuple(self._owners):
            job.step += job in stepped
            if job.ticket.cancelled:
                self._owners.remove(job)
                self._note("stops", job)
                self._leave(job)
            elif job.step == job.steps:
                self._owners.remove(job)
                self._note("ends", job)
                self._leave(job, job.keep_seconds)
            elif job in stepped and self._baton.wanted(job.ticket):
                self._owners.remove(job)
                self._note("pauses", job)
                with pytest.raises(Blocked):
                    self._baton.pass_on(job.ticket)
                self._waiting.append(job)
                self._settle()
        self._is_settling = False
        self._settle()


def play(kind: type[Simulated] | type[Real], seed: int) -> Log:
    clock = Clock()
    device = kind(clock)
    for job in jobs(seed):
        clock.at(job.arrives, device.arrive, job)
        clock.at(job.cancelled_at, device.cancel, job)
    while clock.step():
        pass
    return device.log


def test_both_devices_do_the_same_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage_server.runtime.baton.Condition", Impatient)
    seen: set[str] = set()
    for seed in range(SCHEDULES):
        expected = play(Real, seed)
        assert play(Simulated, seed) == expected, f"seed {seed}"
        seen.update(what for what, _, _ in expected)
    assert seen == {"has the device", "joins", "pauses", "stops", "ends"}
