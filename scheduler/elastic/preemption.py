"""When a waiting job takes the device from a running one: shortest remaining work first, at the end of a step."""

from __future__ import annotations

from itertools import islice

from scheduler import chain
from scheduler.elastic.settings import ElasticSettings
from scheduler.state import Attempt, Job, Server
from scheduler.view import View

SAMPLE = 32
"""Holders that are looked at: in a larger fleet some device is always about to be free."""

PREVIEW_SHARE = 0.01
"""Of a job's own time that each of its intermediate pictures may cost while others wait."""


class ShortestRemaining:
    """At most one job is paused per server, and each at most ``max_preemptions`` times: no job is starved by it.

    It asks for a clear gain: the waiting job is several times shorter than what the running one still needs, and would
    wait longer than the switch costs. Its length is that of all stages for which it keeps the device. Aging counts as
    it does among waiting jobs, so one that has waited long is left alone.
    """

    def __init__(self, settings: ElasticSettings):
        self._settings = settings
        self.keep_seconds = settings.keep_seconds

    def victim(self, job: Job, view: View, now: float) -> Server | None:
        serving = view.serving(job.request.spec.model, job.spec.role).values()
        servers = list(islice((each for each in serving if not job.spec.lacks(each.spec.adapters)), SAMPLE))
        able = (server.running() for server in servers if self.may_yield(server, job, view, now))
        best = max(filter(None, able), key=lambda attempt: attempt.remaining(now), default=None)
        if best is None:
            return None
        wait = min(server.remaining(now) + _afterwards(server, view) for server in servers)
        if wait - best.step_seconds < self._settings.preemption_overhead_seconds:
            return None
        best.preemptions += 1
        return best.server

    def may_yield(self, server: Server, job: Job, view: View, now: float) -> bool:
        running = server.running()  # not a batch, and neither a paused job nor the next one beside it
        if running is None or not running.steps or not server.may_run(job.spec.role) or job.spec.optional:
            return False
        if job.spec.lacks(server.spec.adapters):
            return False
        its, spec = running.job.request.spec, job.request.spec
        if its.tenant != spec.tenant or its.priority > spec.priority:
            return False
        return running.preemptions < self._settings.max_preemptions and self._is_worth_it(running, job, view, now)

    def lets_in(self, server: Server, preview: Job, view: View, now: float) -> bool:  # noqa: ARG002
        """Where nobody waits for the server; otherwise only what hardly delays anybody."""
        running = server.running()
        if running is None or not server.may_run(preview.spec.role):
            return False
        if not any(view.waiting(server.spec.model, role) for role in server.serving - {preview.spec.role}):
            return True
        return view.seconds(preview, server) < PREVIEW_SHARE * running.predicted_seconds

    def _is_worth_it(self, running: Attempt, job: Job, view: View, now: float) -> bool:
        server, left = running.server, running.remaining(now)
        ratio, aging, its = self._settings.preemption_ratio, self._settings.aging, running.job.request
        if left < ratio * view.seconds(job, server):
            return False  # soon told, of most
        length = sum(view.seconds(other, server) for other in chain.to_come(job, server))
        if left < max(ratio * length, length + aging * (job.request.arrived_at - its.arrived_at)):
            return False
        return now + left + length <= its.spec.deadline or now + left > its.spec.deadline


def _afterwards(server: Server, view: View) -> float:
    """Seconds for which the requests on this server will go on here once their present jobs are done."""
    requests = {attempt.job.request.index: attempt.job for attempt in server.attempts.values()}
    return sum(view.seconds(other, server) for job in requests.values() for other in chain.to_come(job, server))
