"""Brings waiting jobs and free slots together: one running and one prefetched group per server, bound late.

A group is one job that has the device alone, or several that compute together there (``Attempt.group``).

Events only mark what they changed: a server (``touch``) or a station, a model's role with its queue (``enqueue``).
``pump`` looks at each from its own side until nothing is marked: a server takes the best jobs of its roles
(``_fill``), a station's best job looks for a server (``_serve``). Where no server has a slot, a job may compute
together with those that run on one (``scheduler.company``), or interrupt another (``scheduler.interruption``).

A job that was let in keeps the device for its request (``scheduler.chain``): ``_chain`` remembers its attempt on the
server, ``_go_on`` hands out what follows there before any queue is looked at, until nothing follows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf

from scheduler import chain
from scheduler.company import Company
from scheduler.halves import Halves
from scheduler.interruption import Interruptions
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

SOONEST = 1e-3
"""Seconds until a server is looked at again, at least: one of a group that stands still may keep it out of reach."""

SLOTS = 2
"""Groups on a server: one that computes, one whose inputs are fetched meanwhile."""


class Matcher:
    def __init__(
        self,
        view: View,
        outbox: Outbox,
        policies: Policies,
        timers: Timers,
        next_epoch: Callable[[], Epoch],
        halves: Halves,
    ):
        self._view = view
        self._outbox = outbox
        self._policies = policies
        self._timers = timers
        self._next_epoch = next_epoch
        self._halves = halves
        self._inputs: Callable[[Job], tuple[Input, ...]] = lambda _job: ()
        self._settle: Callable[[Job, Server, float], None] = lambda _job, _server, _now: None
        self._open: defaultdict[Station, dict[tuple[bool, str], dict[ServerId, Server]]] = defaultdict(dict)
        """(has a job already, device class) → servers with a free slot."""
        self._company = Company(view, policies, self._has_turn)
        self._interruptions = Interruptions(view, policies, self._avoids)
        self._places: dict[ServerId, list[dict[ServerId, Server]]] = {}
        self._dirty_servers: dict[ServerId, Server] = {}
        self._dirty_stations: dict[Station, None] = {}
        self._wary: dict[Station, set[JobId]] = {}
        """Waiting jobs that avoid a server. When another server goes, or changes, they may take the avoided one."""

    def consult(self, inputs: Callable[[Job], tuple[Input, ...]], settle: Callable[[Job, Server, float], None]) -> None:
        """``inputs`` of a job; ``settle`` it on a server, which may not be able to go on with it."""
        self._inputs, self._settle = inputs, settle

    # --- what changed -------------------------------------------------------------------------------------------------

    def enqueue(self, job: Job, now: float) -> None:
        station = (job.request.spec.model, job.spec.role)
        queue = self._view.queues.get(station)
        if queue is None:
            queue = self._view.queues[station] = self._policies.order.queue()
        sources = [job.request.jobs[need] for need in job.spec.needs]
        held = [source.holder for source in sources if source.outputs]
        if job.handed_over is not None:
            held.append(job.handed_over.source.holder)
        job.avoid |= self._view.reach.unable(holder for holder in held if holder is not None)
        job.queued_key = self._policies.order.key(job, self._view, now)
        queue.push(job, job.queued_key, now)
        if job.avoid:
            self._wary.setdefault(station, set()).add(job.spec.id)
        for observer in self._policies.observers:
            observer.queued(job, now)
        self._dirty_stations[station] = None

    def dequeue(self, job: Job) -> None:
        """It waits no longer, and nobody has it: whoever is the best now was not asked who would take it."""
        if job.queued_key is not None:
            self._take_out(job)
            self._dirty_stations[job.request.spec.model, job.spec.role] = None

    def _take_out(self, job: Job) -> None:
        station = (job.request.spec.model, job.spec.role)
        self._view.queues[station].discard(job)
        job.queued_key = None
        wary = self._wary.get(station)
        if wary is not None and job.spec.id in wary:
            self._dirty_stations[station] = None  # those behind it may have waited for a server that it avoids
            wary.discard(job.spec.id)
            if not wary:
                del self._wary[station]

    def touch(self, server: Server, *, only_pace: bool = False) -> None:
        """Something about the server changed: its slots, limits or roles, or only how fast its work gets on."""
        for each in server.sharers or (server,):
            self._dirty_servers[each.id] = each
            if not only_pace:
                self._company.changed(each)
        if self._wary:
            self._dirty_stations.update(dict.fromkeys(self._wary))

    def forget(self, server: Server, sharers: Iterable[Server] = ()) -> None:
        """It is gone; those that shared its device have more of it now."""
        self._dirty_servers.pop(server.id, None)
        self._dirty_stations.update(dict.fromkeys(self._wary))
        self._timers.clear(Alarm.LEAD, server.id)
        self._close(server)
        for other in sharers:
            self._dirty_servers[other.id] = other
            self._company.changed(other)

    # --- matching -----------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> None:
        """Commit jobs until no free slot has a job to run."""
        while self._dirty_servers or self._dirty_stations:
            while self._dirty_servers:
                _, server = self._dirty_servers.popitem()
                if not self._fill(server, now):
                    self._place(server, now)
                for station in self._company.concerned(server):
                    self._dirty_stations[station] = None
                for station in self._interruptions.reconsider(server, now):
                    self._dirty_stations[station] = None
            if self._dirty_stations:
                station, _ = self._dirty_stations.popitem()
                self._serve(station, now)

    def _serve(self, station: Station, now: float) -> None:
        queue = self._view.queues[station]
        while (job := queue.best(now)) is not None:
            candidates = self._candidates(job, station, now)
            if candidates:
                is_served = self._fill(self._policies.placement.server(job, candidates, self._view, now), now)
            else:
                is_served = self._accompany(job, station, now) or self._preempt(job, now)
            if not is_served:
                self._pass_over(job, now)
                return

    def _pass_over(self, job: Job, now: float) -> None:
        """The servers that the best job avoids, or that lack its adapters, may do others meanwhile."""
        avoided = [self._view.servers[each] for each in sorted(job.avoid) if each in self._view.servers]
        for server in (*avoided, *self._lacking(job)):
            self._fill(server, now)
        if job.spec.adapters:
            self._serve_behind(job, now)

    def _serve_behind(self, job: Job, now: float) -> None:
        """On servers that lack its adapters others may join what runs, or interrupt it, as they would if it were not
        there."""
        station = (job.request.spec.model, job.spec.role)
        queue, serving = self._view.queues[station], self._view.serving(*station)
        kinds = {frozenset(each.spec.adapters) for each in serving.values() if job.spec.lacks(each.spec.adapters)}
        for kind in sorted(kinds, key=sorted):
            while (other := queue.best(now, kind)) is not None:
                if not (self._accompany(other, station, now) or self._preempt(other, now)):
                    break

    def _lacking(self, job: Job) -> list[Server]:
        """Those with a free slot for its role that have not the adapters that it needs."""
        if not job.spec.adapters:
            return []
        places = self._open[(job.request.spec.model, job.spec.role)].values()
        return [server for place in places for server in place.values() if job.spec.lacks(server.spec.adapters)]

    def _candidates(self, job: Job, station: Station, now: float) -> list[Server]:
        """Servers with a free slot, idle ones if there are any."""
        places = self._open[station]
        for is_busy in (False, True):
            found: list[Server] = []
            for (busy, _), some in places.items():
                if some and busy is is_busy:
                    found += islice(self._willing(job, some, now), SAMPLE)
            if found:
                return found
        return []

    def _idle(self, station: Station) -> Iterator[Server]:
        """Some that have nothing to do, or had not before what is just being sent."""
        for (busy, _), some in self._open[station].items():
            if not busy:
                yield from islice(some.values(), SAMPLE)

    def _willing(self, job: Job, servers: Mapping[ServerId, Server], now: float) -> Iterator[Server]:
        return (server for server in servers.values() if self._may_get(job, server, now))

    def _may_get(self, job: Job, server: Server, now: float) -> bool:
        """What keeps a job from a server is overcome where the job would wait for ever otherwise."""
        role, withholds = job.spec.role, self._policies.placement.withholds
        if self._avoids(job, server):
            return False
        if job.gives_way and not server.is_idle:
            return False  # a preview that waited for another job's end would mostly come too late
        if not withholds(server, role, self._view, now):
            return True
        if not (job.avoid or job.spec.adapters) or server.id in job.avoid:
            return False
        others = self._able(job)
        return all(other in job.avoid or withholds(others[other], role, self._view, now) for other in others)

    def _avoids(self, job: Job, server: Server) -> bool:
        """Whether it is not to run there: for want of adapters never, otherwise unless it avoids all that are able."""
        if job.spec.lacks(server.spec.adapters):
            return True
        return server.id in job.avoid and not self._able(job).keys() <= job.avoid

    def _able(self, job: Job) -> Mapping[ServerId, Server]:
        """Those who serve its role and have its adapters."""
        serving = self._view.serving(job.request.spec.model, job.spec.role)
        if not job.spec.adapters:
            return serving
        return {name: server for name, server in serving.items() if not job.spec.lacks(server.spec.adapters)}

    def _fill(self, server: Server, now: float) -> bool:
        """Give the server's device jobs while it has a free slot; whether it got any."""
        sharers = tuple(server.sharers) or (server,)
        got = any(self._go_on(each, now) for each in sharers)
        while self._until_slot(server, now) <= 0:
            turn = self._turn(sharers, now)
            if turn is None:
                break
            self._commit(*turn, now)
            got = True
        return got

    def _turn(self, sharers: Sequence[Server], now: float) -> tuple[Job, Server] | None:
        """What the device of these takes next, and for which of them: of each the role that has its turn."""
        found: dict[JobId, tuple[Job, Server]] = {}
        for server in sharers:
            heads = self._heads(server, now)
            if heads:
                job = heads[self._policies.placement.role(server, heads, self._view, now)]
                found[job.spec.id] = job, server
        if len(found) < 2:
            return next(iter(found.values()), None)
        return found[self._policies.order.first([job for job, _ in found.values()]).spec.id]

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
        best = queue.best(now, server.spec.adapters)
        if best is None or self._may_get(best, server, now):
            return best
        others = islice(queue.alike(best), PASSED_OVER) if best.avoid else ()
        return next((other for other in others if self._may_get(other, server, now)), None)

    def _commit(self, best: Job, server: Server, now: float, *, preempt: bool = False, chain: bool = False) -> None:
        """``preempt``: what runs there pauses for it, and if ``chain`` for what follows of its request as well."""
        role = best.spec.role
        queue = self._view.queues[(server.spec.model, role)]
        waiting, waited = len(queue), now - best.request.arrived_at
        self._halves.give_back(server, now)
        attempt = self._attempt(best, server, now, alone=preempt)
        server.sent[role] = server.sent.get(role, 0) + 1
        for observer in self._policies.observers:
            observer.committed(attempt, self._view, now)
        others = len(server.group(attempt.group)) - 1
        company = f", together with {others}" if others else ""
        reason = f"best of {waiting} waiting {role} jobs, {waited:.3f} s after arrival{company}"
        keep = self._chain(attempt) if chain else 0.0
        if not preempt:
            self._halves.find(attempt, self._idle((server.spec.model, role)), now)
        inputs = self._inputs(best)
        self._outbox.run(attempt, inputs, reason, preempt=preempt, keep_seconds=keep)
        self._halves.send(attempt, inputs)
        if attempt.help is not None:
            self._place(attempt.help.server, now)  # behind those that do nothing at all: only some are looked at
        self._place(server, now)

    def _attempt(self, job: Job, server: Server, now: float, *, alone: bool) -> Attempt:
        self._take_out(job)
        self._settle(job, server, now)
        job.become(JobState.FETCHING)
        server.adapted |= job.spec.adapters
        epoch, together = self._next_epoch(), server.together(job.spec.role)
        most = 1 if alone else self._company.most(job, server)
        group = server.sharing()
        joins = most > 1 and bool(group) and group[0].job.spec.is_like(job.spec)
        if joins and len(group) >= most < together:
            joins, most = False, 1  # the server itself would let it in
        job.attempt = server.attempts[epoch] = Attempt(
            epoch,
            job,
            server,
            group[0].group if joins else epoch,
            committed_at=now,
            predicted_seconds=self._view.seconds(job, server),
            share=most > 1,
            marginal=self._view.marginal(job, server),
            step=job.first_step,
        )
        return job.attempt

    # --- those that compute together, and those that interrupt others -------------------------------------------------

    def _accompany(self, job: Job, station: Station, now: float) -> bool:
        """Let it compute together with what runs somewhere, or between two steps of that; whether it does."""
        found = self._company.find(job, station, now)
        if found is not None:
            server, pauses = found
            self._commit(job, server, now, preempt=pauses)
        return found is not None

    def _has_turn(self, job: Job, server: Server, now: float) -> bool:
        turn = self._turn(tuple(server.sharers) or (server,), now)
        return turn is not None and turn[0] is job

    def _preempt(self, job: Job, now: float) -> bool:
        server = self._interruptions.find(job, now)
        if server is not None:
            self._commit(job, server, now, preempt=True, chain=not job.spec.optional)
        return server is not None

    def _go_on(self, server: Server, now: float) -> bool:
        """Commit what follows in the request for which a job was paused here; whether anything does."""
        last = server.chained
        if last is None or last.epoch in server.attempts:
            return False
        job = chain.following(last)
        if job is None or self._avoids(job, server):
            server.chained = None
            return False
        self._commit(job, server, now, preempt=True, chain=True)
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
        """Bring the index up to date, and ask to be woken when the server, or who shares its device, is in reach."""
        for each in server.sharers or (server,):
            self._place_one(each, now)

    def _place_one(self, server: Server, now: float) -> None:
        self._close(server)
        if server.id not in self._view.servers:
            return
        places = self._places[server.id] = []
        wait, room = self._until_slot(server, now), self._company.until_room(server, now)
        if wait <= 0:
            kind = (not server.is_idle, server.spec.device_class)
            able = [(server.spec.model, role) for role in server.serving if server.may_run(role)]
            places += [self._open[station].setdefault(kind, {}) for station in able]
        if room <= 0:
            places.append(self._company.with_room[(server.spec.model, server.sharing()[0].job.spec.role)])
        if len(server.serving) > 1 and any(attempt.job.spec.role is Role.DIT for attempt in server.sharing()[:1]):
            places.append(self._company.denoising[server.spec.model])
        for place in places:
            place[server.id] = server
        later = wait if wait > 0 else inf
        if 0 < room < later:
            later = room
        # While nothing computes there, time alone brings it no nearer: its reports will.
        if later < inf and any(attempt.company for attempt in server.on_device()):
            self._timers.set(Alarm.LEAD, server.id, now + max(later, SOONEST))

    def _close(self, server: Server) -> None:
        for place in self._places.pop(server.id, ()):
            place.pop(server.id, None)
