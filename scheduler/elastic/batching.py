"""When a waiting job computes together with those that run already, and when it rather waits for a device of its own.

What counts is the predicted sum of delays: what the job gains, what those lose that it joins, and what all that wait
behind it, or will come while the device is busy, gain because it gets more done.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from scheduler.elastic.fairness import Fairness
from scheduler.elastic.inflow import Inflow
from scheduler.elastic.settings import ElasticSettings
from scheduler.policy import Observer
from scheduler.sharing import ends
from scheduler.state import Attempt, Job, Request, Server
from scheduler.transitions import COMMITTED
from scheduler.view import Station, View
from wire.record import record
from wire.types import ROLES

LOOKED_AT = 16
"""Holders of the role of which the soonest free is what the job could wait for instead."""


@record(frozen=True, slots=True)
class _Joined:
    """What would come of it on one server. Times are seconds from now."""

    server: Server
    group: Sequence[Attempt]
    before: Sequence[float]
    """Ends of the group's attempts as things stand."""
    after: Sequence[float]
    """The same if the others come; theirs are the last."""
    end: float
    """Of the last of the others."""
    gain: float
    """Seconds, of all that are here."""
    later: float
    """The same, of those that are expected to come. They may go to any server, so this does not say which is best."""


class LeastDelay(Observer):
    def __init__(self, settings: ElasticSettings, fairness: Fairness):
        self._settings = settings
        self._fairness = fairness
        self._coming: dict[Station, Inflow] = {}
        """Jobs."""

    def opened(self, request: Request, view: View, now: float) -> None:  # noqa: ARG002
        if self._settings.max_batch == 1:
            return
        for job in request.jobs.values():
            if not job.spec.optional and job.holder is None:  # what is kept from earlier is not made again
                station = (request.spec.model, job.spec.role)
                self._coming.setdefault(station, Inflow(now)).add(1.0, 1.0, now)

    def most(self, job: Job, server: Server, view: View) -> int:
        if self._settings.max_batch == 1 or view.marginal(job, server) >= 1:
            return 1
        return self._settings.max_batch

    def joins(self, job: Job, candidates: Sequence[Server], view: View, now: float) -> Server | None:
        return self._best([job], None, candidates, view, now)

    def makes_way(
        self, job: Job, following: Sequence[Job], candidates: Sequence[Server], view: View, now: float
    ) -> Server | None:
        return self._best(following, job, candidates, view, now)

    def _best(
        self, joining: Sequence[Job], first: Job | None, candidates: Sequence[Server], view: View, now: float
    ) -> Server | None:
        """Where those join, all of one request; before that the group stands still while ``first`` is computed."""
        jobs = [*([] if first is None else [first]), *joining]
        otherwise = _own_device(jobs, view, now)
        found = [self._joined(joining, first, server, otherwise, view, now) for server in candidates]
        best = max(found, key=lambda joined: joined.gain)
        pays = best.gain + best.later > 0
        return best.server if pays and _keeps_deadlines(jobs[-1], best, otherwise, view, now) else None

    def _joined(
        self, joining: Sequence[Job], first: Job | None, server: Server, otherwise: float, view: View, now: float
    ) -> _Joined:
        group, job = server.sharing(), joining[0] if first is None else first
        pause = 0.0 if first is None else view.seconds(first, server)
        work, one = [view.seconds(each, server) for each in joining], joining[0] if joining else group[0].job
        marginal, most = view.marginal(one, server), server.together(one.spec.role)
        left = [attempt.left(now) for attempt in group]
        before = ends(left, marginal, most)
        after = [pause + end for end in ends([*left, *work], marginal, most)]
        share = self._fairness.share(job.request.spec.tenant)
        lost = sum(
            (late - soon) * self._fairness.share(attempt.job.request.spec.tenant) / share
            for attempt, soon, late in zip(group, before, after, strict=False)
        )
        end = max(after[len(group) :], default=pause)
        spared = pause + sum(work) - (max(after) - max(before))
        gain = otherwise - end - lost + _behind(job, server, view) * spared
        later = self._later(server, otherwise, view, now) * spared
        return _Joined(server, group, before, after, end, gain, later)

    def _later(self, server: Server, seconds: float, view: View, now: float) -> float:
        """Requests that are expected to come to this server within so long, from how many came lately."""
        model, most = server.spec.model, 0.0
        for role in server.serving:
            if (inflow := self._coming.get((model, role))) is not None:
                most = max(most, inflow.rate(now) / len(view.serving(model, role)))
        return most * seconds


def _own_device(jobs: Sequence[Job], view: View, now: float) -> float:
    """Seconds until jobs of one request are done, one after the other, that wait for the first device that is free."""
    first = jobs[0]
    holders = view.serving(first.request.spec.model, first.spec.role).values()
    able = islice((each for each in holders if not first.spec.lacks(each.spec.adapters)), LOOKED_AT)
    return min(server.remaining(now) + sum(view.seconds(job, server) for job in jobs) for server in able)


def _behind(job: Job, server: Server, view: View) -> float:
    """Other jobs that wait for this server: those of its roles, each shared with their other holders."""
    model = server.spec.model
    waiting = sum(view.waiting(model, role) / len(view.serving(model, role)) for role in server.serving)
    return waiting - 1 / len(view.serving(model, job.spec.role))


def _keeps_deadlines(job: Job, joined: _Joined, otherwise: float, view: View, now: float) -> bool:
    """No deadline that would be met is missed for company."""
    cases = [(job, otherwise, joined.end)]
    for attempt, soon, late in zip(joined.group, joined.before, joined.after, strict=False):
        if attempt.job.attempt is attempt and attempt.job.state in COMMITTED:
            cases.append((attempt.job, soon, late))
    for one, soon, late in cases:
        rest, deadline = now + _afterwards(one, view), one.request.spec.deadline
        if rest + soon <= deadline < rest + late:
            return False
    return True


def _afterwards(job: Job, view: View) -> float:
    """Seconds that the request needs at least once this job is done."""
    longest = dict.fromkeys(ROLES[ROLES.index(job.spec.role) + 1 :], 0.0)
    for other in job.request.jobs.values():
        role = other.spec.role
        if role in longest and other.holder is None and not other.taken and not other.spec.optional:
            longest[role] = max(longest[role], view.reference_seconds(other))
    return sum(longest.values())
