"""Who takes a device from what runs there: a waiting job that found no slot, or an intermediate picture.

What pays is for ``policy.Preemption`` to say. A job that nobody gives way to is remembered, or every further arrival
behind it would ask for the device again; ``reconsider`` has it ask again when a server's job has become one that may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from scheduler.policy import Policies
from scheduler.state import Job, Server
from scheduler.view import Station, View
from wire.types import ROLES, JobId

SAMPLE = 8
"""Servers that are asked whether they let an intermediate picture in."""

Avoids = Callable[[Job, Server], bool]
"""Whether the job is not to run there."""


class Interruptions:
    def __init__(self, view: View, policies: Policies, avoids: Avoids) -> None:
        self._view = view
        self._policies = policies
        self._avoids = avoids
        self._refused: dict[tuple[Station, frozenset[str]], JobId] = {}
        """Of those that wait with equal adapters the best, if nothing gave way to it."""

    def find(self, job: Job, now: float) -> Server | None:
        """The server that is to pause what it computes for the best that waits, or for the best that it could run."""
        if self._policies.preemption is None or self._refused.get(_kind(job)) == job.spec.id:
            return None
        server = self._lets_in(job, now) if job.spec.optional else self._victim(job, now)
        if server is None:
            self._refused[_kind(job)] = job.spec.id
        return server

    def reconsider(self, server: Server, now: float) -> Iterator[Station]:
        """Where the best of those that wait may take it from a job whose pace has only now become known, or that
        resumed."""
        policy, model = self._policies.preemption, server.spec.model
        if policy is None or server.running() is None:
            return
        for role in [role for role in ROLES if role in server.serving and self._view.waiting(model, role)]:
            job = self._view.queues[(model, role)].best(now, server.spec.adapters)
            if job is None:
                continue
            may = policy.lets_in if job.spec.optional else policy.may_yield
            if may(server, job, self._view, now):
                self._refused.pop(_kind(job), None)
                yield (model, role)

    def _victim(self, job: Job, now: float) -> Server | None:
        policy = self._policies.preemption
        victim = policy.victim(job, self._view, now) if policy is not None else None
        if victim is None or not victim.may_run(job.spec.role) or self._avoids(job, victim):
            return None
        return victim

    def _lets_in(self, preview: Job, now: float) -> Server | None:
        """Between two steps of a running job, first of all of the one that showed it."""
        policy = self._policies.preemption
        serving = self._view.serving(preview.request.spec.model, preview.spec.role)
        source = preview.preview_of.attempt if preview.preview_of is not None else None
        first = [source.server] if source is not None and source.server.id in serving else []
        able = (*first, *islice(serving.values(), SAMPLE))
        return next((s for s in able if policy is not None and policy.lets_in(s, preview, self._view, now)), None)


def _kind(job: Job) -> tuple[Station, frozenset[str]]:
    return (job.request.spec.model, job.spec.role), job.spec.adapters
