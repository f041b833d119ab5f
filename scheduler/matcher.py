"""Brings waiting jobs and free slots together: one running and one prefetched batch per server, bound late.

Events only mark what they changed: a server (``touch``) or a station, a model's role with its queue (``enqueue``).
``pump`` looks at each from its own side until nothing is marked: a server takes the best jobs of its roles
(``_fill``), a station's best job looks for a server (``_serve``). Only where no server has a slot may a job take one
from another (``_preempt``). If nothing gives way, that job is noted in ``_refused``, or every further arrival behind it
would ask again; ``_reconsider`` asks again when a server's job has become one that may yield.

A job that was let in keeps the device for its request (``scheduler.chain``): ``_chain`` remembers its attempt on the
server, ``_go_on`` hands out what follows there before any queue is looked at, until nothing follows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from math import inf

from scheduler import chain
from scheduler.actions import Member
from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.queue import StageQueue
from scheduler.spec import Input
from scheduler.state import Attempt, Job, Server
from scheduler.timers import Alarm, Timers
from scheduler.transitions import JobState
from scheduler.view import Station, View
from wire.types import Epoch, JobId, Role, ServerId

SAMPLE = 8
"""Servers of one device class that are compared for a job: enough to choose well, few enough to stay fast."""

PASSED_OVER = 64
"""Jobs alike to one that avoids a server that are looked at for it: usually the first will do."""

SLOTS = 2
"""Batches on a server: one that computes, one whose inputs are fetched meanwhile."""


class Matcher:
    def __init__(
        self,
        view: View,
        outbox: Outbox,
        policies: Policies,
        timers: Timers,
        next_epoch: Callable[[], Epoch],
    ):
        self._view = view
        self._outbox = outbox
        self._policies = policies
        self._timers = timers
        self._next_epoch = next_epoch
        self._inputs: Callable[[Job], tuple[Input, ...]] = lambda _job: ()
        self._open: defaultdict[Station, dict[tuple[bool, str], dict[ServerId, Server]]] = defaultdict(dict)
        """(has a job already, device class) → servers with a free slot."""
        self._places: dict[ServerId, list[dict[ServerId, Server]]] = {}
        self._dirty_servers: dict[ServerId, Server] = {}
        self._dirty_stations: dict[Station, None] = {}
        self._refused: dict[Station, JobId] = {}
        """The best that waits, if nothing gave way to it: asked again when something may, not whenever others come."""
        self._wary: dict[Station, set[JobId]] = {}
        """Waiting jobs that avoid a server. When another server goes, or changes, they may take the avoided one."""

    def read_inputs_with(self, inputs: Callable[[Job], tuple[Input, ...]]) -> None:
        self._inputs = inputs

    # --- what changed -------------------------------------------------------------------------------------------------

    def enqueue(self, job: Job, now: float) -> None:
        station = (job.request.spec.model, job.spec.role)
        queue = self._view.queues.get(station)
        if queue is None:
            queue = self._view.queues[station] = self._policies.order.queue()
        held = [job.request.jobs[need].holder for need in job.spec.needs]
        job.avoid |= self._view.reach.unable(holder for holder in held if holder is not None)
        job.queued_key = self._policies.order.key(job, self._view, now)
        queue.push(job, job.queued_key, now)
        if job.avoid:
            self._wary.setdefault(station, set()).add(job.spec.id)
        for observer in self._policies.observers:
            observer.queued(job, now)
        self._dirty_stations[station] = None

    def dequeue(self, job: Job) -> None:
        if job.queued_key is None:
            return
        station = (job.request.spec.model, job.spec.role)
        self._view.queues[station].discard(job)
        job.queued_key = None
        wary = self._wary.get(station)
        if wary is not None and job.spec.id in wary:
            self._dirty_stations[station] = None  # those behind it may have waited for a server that it avoids
            wary.discard(job.spec.id)
            if not wary:
                del self._wary[station]

    def touch(self, server: Server) -> None:
        """Something about the server changed: its slots, limits, roles or what remains of its work."""
        self._dirty_servers[server.id] = server
        self._dirty_stations.update(dict.fromkeys(self._wary))

    def forget(self, server: Server) -> None:
        self._dirty_servers.pop(server.id, None)
        self._dirty_stations.update(dict.fromkeys(self._wary))
        self._timers.clear(Alarm.LEAD, server.id)
        self._close(server)

    # --- matching -----------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> None:
        """Commit jobs until no free slot has a job to run."""
        while self._dirty_servers or self._dirty_stations:
            while self._dirty_servers:
                _, server = self._dirty_servers.popitem()
                if not self._fill(server, now):
                    self._place(server, now)
                self._reconsider(server, now)
            if self._dirty_stations:
                station, _ = self._dirty_stations.popitem()
                self._serve(station, now)

    def _reconsider(self, server: Server, now: float) -> None:
        """The best of those that wait may take it from a job whose pace has only now become known, or that resumed."""
        policy = self._policies.preemption
        if policy is None or server.running() is None:
            return
        for role in Role:
            queue = self._view.queues.get((server.spec.model, role)) if role in server.serving else None
            job = queue.best(now) if queue is not None else None
            may = policy.lets_in if job is not None and job.spec.optional else policy.may_yield
            if job is not None and may(server, job, self._view, now):
                self._refused.pop((server.spec.model, role), None)
                self._dirty_stations[(server.spec.model, role)] = None

    def _serve(self, station: Station, now: float) -> None:
        queue = self._view.queues[station]
        while (job := queue.best(now)) is not None:
            candidates = list(self._candidates(job, station, now))
            if candidates:
                is_served = self._fill(self._policies.placement.server(job, candidates, self._view, now), now)
            else:
                is_served = self._preempt(job, now)
            if not is_served:
                self._pass_over(job, now)
                return

    def _pass_over(self, job: Job, now: float) -> None:
        """The servers that the best job avoids may do others meanwhile."""
        for server in [self._view.servers[each] for each in sorted(job.avoid) if each in self._view.servers]:
            self._fill(server, now)

    def _candidates(self, job: Job, station: Station, now: float) -> Iterator[Server]:
        """Servers with a free slot, idle ones if there are any."""
        places = self._open[station]
        for is_busy in (False, True):
            kinds = (some for (busy, _), some in places.items() if busy is is_busy)
            found = [server for some in kinds for server in islice(self._willing(job, some, now), SAMPLE)]
            if found:
                return iter(found)
        return iter(())

    def _willing(self, job: Job, servers: Mapping[ServerId, Server], now: float) -> Iterator[Server]:
        return (server for server in servers.values() if self._may_get(job, server, now))

    def _may_get(self, job: Job, server: Server, now: float) -> bool:
        """What keeps a job from a server is overcome where the job would wait for ever otherwise."""
        role, withholds = job.spec.role, self._policies.placement.withholds
        if self._avoids(job, server):
            return False
        if job.spec.optional and server.attempts:
            return False  # a preview that waited for another job's end would mostly come too late
        if not withholds(server, role, self._view, now):
            return True
        if not job.avoid or server.id in job.avoid:
            return False
        others = self._view.serving(server.spec.model, role)
        return all(other in job.avoid or withholds(others[other], role, self._view, now) for other in others)

    def _avoids(self, job: Job, server: Server) -> bool:
        """Not where every holder of its role is one that it avoids."""
        if server.id not in job.avoid:
            return False
        return not self._view.serving(server.spec.model, job.spec.role).keys() <= job.avoid

    def _fill(self, server: Server, now: float) -> bool:
        """Give the server jobs while it has a free slot; whether it got any."""
        got = self._go_on(server, now)
        while self._until_slot(server, now) <= 0:
            heads = self._heads(server, now)
            if not heads:
                break
            role = self._policies.placement.role(server, heads, self._view, now)
            self._commit(heads[role], server, now)
            got = True
        return got

    def _heads(self, server: Server, now: float) -> dict[Role, Job]:
        heads = {}
        for role in server.serving:
            queue = self._view.queues.get((server.spec.model, role))
            job = self._head(queue, server, now) if queue is not None and server.may_run(role) else None
            if job is not None:
                heads[role] = job
        return heads

    def _head(self, queue: StageQueue, server: Server, now: float) -> Job | None:
        """The best waiting job that this server may get; if the best of all avoids it, one of equal work."""
        best = queue.best(now)
        if best is None or self._may_get(best, server, now):
            return best
        others = islice(queue.alike(best), PASSED_OVER) if best.avoid else ()
        return next((other for other in others if self._may_get(other, server, now)), None)

    def _commit(self, best: Job, server: Server, now: float, *, preempt: bool = False) -> None:
        role = best.spec.role
        queue = self._view.queues[(server.spec.model, role)]
        alone = preempt or best.avoid
        jobs = (best,) if alone else self._policies.batching.members(best, server, queue, self._view, now)
        jobs = (best, *(job for job in jobs[1:] if not job.avoid))
        waited = now - max(job.request.arrived_at for job in jobs)
        attempts = self._attempts(jobs, server, now)
        server.sent[role] = server.sent.get(role, 0) + 1
        for observer in self._policies.observers:
            for attempt in attempts:
                observer.committed(attempt, self._view, now)
        members = tuple(Member(a.job.spec.id, a.epoch, self._inputs(a.job)) for a in attempts)
        reason = f"best of {len(queue) + len(jobs)} waiting {role} jobs, {waited:.3f} s after arrival"
        deadline = min(job.request.spec.deadline for job in jobs)
        keep = self._chain(attempts[0]) if preempt and not best.spec.optional else 0.0
        self._outbox.run(server.id, role, members, deadline, reason, preempt=preempt, keep_seconds=keep)
        self._place(server, now)

    def _attempts(self, jobs: tuple[Job, ...], server: Server, now: float) -> list[Attempt]:
        predicted = self._view.batch_seconds(jobs[0], server, len(jobs))
        attempts: list[Attempt] = []
        for job in jobs:
            self.dequeue(job)
            job.become(JobState.FETCHING)
            epoch = self._next_epoch()
            batch = attempts[0].epoch if attempts else epoch
            job.attempt = Attempt(epoch, job, server, batch, len(jobs), committed_at=now, predicted_seconds=predicted)
            server.attempts[epoch] = job.attempt
            attempts.append(job.attempt)
        return attempts

    def _preempt(self, job: Job, now: float) -> bool:
        policy, station = self._policies.preemption, (job.request.spec.model, job.spec.role)
        if policy is None or self._refused.get(station) == job.spec.id:
            return False
        if job.spec.optional:
            return self._slip_in(job, now)
        victim = policy.victim(job, self._view, now)
        if victim is None or not victim.may_run(job.spec.role) or self._avoids(job, victim):
            self._refused[station] = job.spec.id
            return False
        self._commit(job, victim, now, preempt=True)
        return True

    def _slip_in(self, preview: Job, now: float) -> bool:
        """Let it have the device between two steps of a running job, first of all of the one that showed it."""
        policy = self._policies.preemption
        serving = self._view.serving(preview.request.spec.model, preview.spec.role)
        source = preview.preview_of.attempt if preview.preview_of is not None else None
        first = [source.server] if source is not None and source.server.id in serving else []
        for server in (*first, *islice(serving.values(), SAMPLE)):
            if policy is not None and policy.lets_in(server, preview, self._view, now):
                self._commit(preview, server, now, preempt=True)
                return True
        self._refused[(preview.request.spec.model, preview.spec.role)] = preview.spec.id
        return False

    def _go_on(self, server: Server, now: float) -> bool:
        """Commit what follows in the request for which a job was paused here; whether anything does."""
        last = server.chained
        if last is None or last.epoch in server.attempts:
            return False
        job = chain.following(last)
        if job is None or self._avoids(job, server):
            server.chained = None
            return False
        self._commit(job, server, now, preempt=True)
        return True

    def _chain(self, attempt: Attempt) -> float:
        """It is to be gone on from; how long its device waits for that."""
        attempt.server.chained = attempt
        policy = self._policies.preemption
        return policy.keep_seconds if policy is not None and any(chain.to_come(attempt.job, attempt.server)) else 0.0

    # --- the index of free slots --------------------------------------------------------------------------------------

    def _until_slot(self, server: Server, now: float) -> float:
        """Seconds until it takes another job: 0 or less if it does so now, infinite while no slot is free."""
        occupied = server.occupied()
        if occupied == 0:
            return 0.0
        if occupied >= SLOTS:
            return inf
        return server.remaining(now) - self._policies.placement.lead_seconds(server)

    def _place(self, server: Server, now: float) -> None:
        """Bring the index up to date, and ask to be woken when the server comes within reach."""
        self._close(server)
        if server.id not in self._view.servers:
            return
        wait = self._until_slot(server, now)
        if wait <= 0:
            kind = (bool(server.attempts), server.spec.device_class)
            places = self._places[server.id] = []
            for role in server.serving:
                if server.may_run(role):
                    place = self._open[(server.spec.model, role)].setdefault(kind, {})
                    place[server.id] = server
                    places.append(place)
        elif wait < inf:
            self._timers.set(Alarm.LEAD, server.id, now + max(wait, 1e-6))

    def _close(self, server: Server) -> None:
        for place in self._places.pop(server.id, ()):
            place.pop(server.id, None)
