"""Which waiting jobs to run together with the best one."""

from __future__ import annotations

from itertools import islice

from scheduler.elastic.settings import ElasticSettings
from scheduler.queue import StageQueue
from scheduler.state import Job, Server
from scheduler.view import View

LOOKED_AT = 64
"""Candidates for a batch: the oldest with equal work."""


class SameWork:
    """Batches jobs of equal work while a further member costs clearly less than a job of its own.

    Only jobs of the best one's tenant and priority come along, so that a batch never changes whose turn it is.
    """

    def __init__(self, settings: ElasticSettings):
        self._settings = settings

    def members(self, job: Job, server: Server, queue: StageQueue, view: View, now: float) -> tuple[Job, ...]:
        settings = self._settings
        if settings.max_batch == 1 or not self._may_join(job, job):
            return (job,)
        if view.cost.batch_marginal(job.spec.work, server.spec.target) >= settings.batch_marginal:
            return (job,)
        if self._is_any_idle(job, server, view):
            return (job,)  # there is a device for everyone
        fitting = (other for other in islice(queue.alike(job), LOOKED_AT) if self._may_join(other, job))
        members = [job, *islice(fitting, settings.max_batch - 1)]
        while len(members) > 1 and not self._in_time(members, server, view, now):
            members.pop()
        return tuple(members)

    def _may_join(self, other: Job, job: Job) -> bool:
        mine, its = job.request.spec, other.request.spec
        alone = (its.seeded and not self._settings.batch_seeded) or other.spec.optional
        return not alone and mine.tenant == its.tenant and mine.priority == its.priority

    def _is_any_idle(self, job: Job, server: Server, view: View) -> bool:
        holders = islice(view.serving(job.request.spec.model, job.spec.role).values(), LOOKED_AT)
        return any(not other.attempts and other is not server for other in holders)

    def _in_time(self, members: list[Job], server: Server, view: View, now: float) -> bool:
        """No member misses its deadline for the company of the others."""
        start = now + server.remaining(now)
        alone = start + view.seconds(members[0], server)
        together = start + view.batch_seconds(members[0], server, len(members))
        return all(not alone <= job.request.spec.deadline < together for job in members)
