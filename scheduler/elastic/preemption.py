"""When a waiting job takes the device from a running one: shortest remaining work first, at the end of a step."""

from __future__ import annotations

from itertools import islice
from math import inf

from scheduler import chain
from scheduler.elastic.settings import ElasticSettings
from scheduler.policy import Observer
from scheduler.spec import Timings
from scheduler.state import Attempt, Job, Request, Server
from scheduler.transitions import JobState
from scheduler.view import View
from wire.types import Epoch

SAMPLE = 64
"""Holders that are looked at: in a larger fleet some device is always about to be free."""


class ShortestRemaining(Observer):
    """At most one job is paused per server, and each at most ``max_preemptions`` times: no job is starved by it.

    It asks for a clear gain: the waiting job is several times shorter than what the running one still needs, and would
    wait longer than the switch costs. Its length is that of all stages for which it keeps the device. Aging counts as
    it does among waiting jobs, so one that has waited long is left alone.
    """

    def __init__(self, settings: ElasticSettings):
        self._settings = settings
        self.keep_seconds = settings.keep_seconds
        self._times: dict[Epoch, int] = {}

    def victim(self, job: Job, view: View, now: float) -> Server | None:
        model, role = job.request.spec.model, job.spec.role
        if job.spec.optional:
            return None
        wait, best, longest = inf, None, 0.0
        for server in islice(view.holding(model, role).values(), SAMPLE):
            remaining = server.remaining(now)
            if remaining < wait:
                wait = min(wait, remaining + _afterwards(server, view))
            if wait < self._settings.preemption_overhead_seconds:
                return None
            if remaining > longest and server.may_run(role):
                running = self._may_yield(server, job, view, now)
                best, longest = (running, remaining) if running is not None else (best, longest)
        if best is None or wait - best.step_seconds < self._settings.preemption_overhead_seconds:
            return None
        self._times[best.epoch] = self._times.get(best.epoch, 0) + 1
        return best.server

    def done(self, attempt: Attempt, timings: Timings, now: float) -> None:  # noqa: ARG002
        self._times.pop(attempt.epoch, None)

    def failed(self, attempt: Attempt, *, is_fault: bool, now: float) -> None:  # noqa: ARG002
        self._times.pop(attempt.epoch, None)

    def over(self, request: Request, *, finished: bool) -> None:  # noqa: ARG002
        for job in request.jobs.values():
            if job.attempt is not None:
                self._times.pop(job.attempt.epoch, None)

    def _may_yield(self, server: Server, job: Job, view: View, now: float) -> Attempt | None:
        """The running attempt, if it may and should give way to the job."""
        if len(server.attempts) != 1:
            return None  # a batch, a job paused already, or one that is next
        running = next(iter(server.attempts.values()))
        its = running.job.request.spec
        if running.job.state is not JobState.RUNNING or not running.steps or its.priority > job.request.spec.priority:
            return None
        if its.tenant != job.request.spec.tenant or self._times.get(running.epoch, 0) >= self._settings.max_preemptions:
            return None
        left = running.remaining(now)
        length = sum(view.seconds(other, server) for other in chain.to_come(job, server))
        aged = self._settings.aging * (job.request.arrived_at - running.job.request.arrived_at)
        if left < max(self._settings.preemption_ratio * length, length + aged):
            return None
        return running if now + left + length <= its.deadline or now + left > its.deadline else None


def _afterwards(server: Server, view: View) -> float:
    """Seconds for which the requests on this server will go on here once their present jobs are done."""
    requests = {attempt.job.request.index: attempt.job for attempt in server.attempts.values()}
    return sum(view.seconds(other, server) for job in requests.values() for other in chain.to_come(job, server))
