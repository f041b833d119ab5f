"""Who computes together: whom the groups on servers have room for, and what they let in between two steps.

A group on a server that has other roles as well pauses for their jobs: for the encoder job of a request whose
denoising then joins it, and for the decoder job of one that is done. What pays is for ``policy.Batching`` to say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf

from scheduler.policy import Policies
from scheduler.state import Job, Server
from scheduler.transitions import JobState
from scheduler.view import Station, View
from wire.types import ROLES, JobId, ModelKey, Role, ServerId

SAMPLE = 8
"""Groups that are compared for a job."""

HasTurn = Callable[[Job, Server, float], bool]
"""Whether the job is what the server's device would take next if it had a slot."""


class Company:
    """``has_turn``: a group that others join has no end, so nobody joins it, or has it pause, out of turn."""

    def __init__(self, view: View, policies: Policies, has_turn: HasTurn) -> None:
        self._view = view
        self._policies = policies
        self._has_turn = has_turn
        self.with_room: defaultdict[Station, dict[ServerId, Server]] = defaultdict(dict)
        """Servers whose group has room for others."""
        self.denoising: defaultdict[ModelKey, dict[ServerId, Server]] = defaultdict(dict)
        """Servers that have a group of dit jobs, and other roles."""
        self._refused: dict[Station, tuple[JobId, int, int]] = {}
        """The best that waits, if no group takes it; how many wait; and how often servers had changed by then."""
        self._changes: Counter[Station] = Counter()
        """Of what its servers have."""

    def changed(self, server: Server) -> None:
        for role in server.serving:
            self._changes[(server.spec.model, role)] += 1

    def concerned(self, server: Server) -> list[Station]:
        """Whose best waiting job might be taken by the group that this server has."""
        model = server.spec.model
        lets_in = server.id in self.denoising[model]
        if not lets_in and not server.sharing():
            return []  # as it is most of the time
        stations = [(model, role) for role in ROLES if role in server.serving and self._view.waiting(model, role)]
        return [station for station in stations if lets_in or server.id in self.with_room[station]]

    def find(self, job: Job, station: Station, now: float) -> tuple[Server, bool] | None:
        """Where the best that waits is to compute together with others, or, if True, to have them pause for it."""
        state = (job.spec.id, self._view.waiting(*station), self._changes[station])
        if self._refused.get(station) == state:
            return None
        if (server := self._to_join(job, station, now)) is not None:
            return server, False
        if (server := self._to_pause(job, now)) is not None:
            return server, True
        self._refused[station] = state
        return None

    def most(self, job: Job, server: Server) -> int:
        """How many of its kind may be together there, itself included."""
        if job.request.spec.exact or job.spec.optional:
            return 1
        if job.spec.work.step_cache:  # what each leaves out is its own: no call of one is a call of another
            return 1
        if job.avoid or job.losses:  # what made NaN once, or ended a server, is to spoil nobody else's
            return 1
        return min(server.together(job.spec.role), self._policies.batching.most(job, server, self._view))

    def until_room(self, server: Server, now: float) -> float:
        """Seconds until it takes another job into its group: infinite if it will not."""
        group = server.sharing()
        if not group or not server.may_run(group[0].job.spec.role):
            return inf
        job = group[0].job
        together, most = server.together(job.spec.role), self.most(job, server)
        if len(group) < most:
            return 0.0
        if len(group) > together or most < together:
            return inf
        # The server keeps one more waiting, with its inputs at hand, until one of the group has ended.
        return min(each.remaining(now) for each in group) - self._policies.placement.lead_seconds(server)

    def _to_join(self, job: Job, station: Station, now: float) -> Server | None:
        able = (each for each in self.with_room[station].values() if self._may_join(job, each, now))
        candidates = list(islice(able, SAMPLE))
        return self._policies.batching.joins(job, candidates, self._view, now) if candidates else None

    def _may_join(self, job: Job, server: Server, now: float) -> bool:
        group = server.sharing()
        if not group or not group[0].job.spec.is_like(job.spec) or self.most(job, server) < 2:
            return False
        return self._has_turn(job, server, now)

    def _to_pause(self, job: Job, now: float) -> Server | None:
        if job.spec.role is Role.DIT or job.gives_way or self._policies.preemption is None:
            return None
        following = list(_following(job))
        if job.spec.role is Role.ENCODER and not following:
            return None
        able = (
            server
            for server in self.denoising[job.request.spec.model].values()
            if self._may_pause(job, following, server, now)
        )
        candidates = list(islice(able, SAMPLE))
        if not candidates:
            return None
        return self._policies.batching.makes_way(job, following, candidates, self._view, now)

    def _may_pause(self, job: Job, following: list[Job], server: Server, now: float) -> bool:
        """All that it has is one group, which computes, and which whatever follows may join."""
        group = server.sharing()
        if not group or any(attempt.job.state is not JobState.RUNNING for attempt in group):
            return False
        for each in following:
            is_alike = each.spec.is_like(group[0].job.spec) and server.may_run(Role.DIT)
            if not is_alike or len(group) >= self.most(each, server):
                return False
        return self._has_turn(job, server, now)


def _following(job: Job) -> Iterator[Job]:
    """The denoising for which an encoder job is needed."""
    for other in job.request.jobs.values():
        if other.spec.role is Role.DIT and other.state is JobState.WAITING and job.spec.id in other.missing:
            yield other
