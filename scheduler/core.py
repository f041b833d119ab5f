"""The scheduler: ``handle(event, now) -> actions`` is the only way in, and nothing else changes its state.

It has no clock, no sockets and no randomness: the gateway drives it with real time, the simulator with virtual time,
tests with whatever they like. What may differ between deployments is in ``scheduler.policy``.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler import events as ev
from scheduler.actions import Action
from scheduler.attempts import MAX_UNREACHED, AttemptEvent, Attempts
from scheduler.fleet import Fleet
from scheduler.halves import Halves
from scheduler.handover import HandOvers
from scheduler.ledger import Ledger
from scheduler.matcher import Matcher
from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.reach import GATEWAY
from scheduler.spec import RequestSpec
from scheduler.standing import Standing, Standings
from scheduler.state import Request
from scheduler.timers import Alarm, Timers
from scheduler.trials import Trials
from scheduler.view import View
from wire.types import Epoch, JobId, ModelKey, RequestId


class Scheduler:
    """``gateway`` is the incarnation that its epochs carry."""

    def __init__(self, gateway: str, policies: Policies | None = None):
        self.policies = policies or Policies()
        self.view = View(self.policies.cost)
        self._standings = Standings(self.view, self.policies)
        self._gateway = gateway
        self._epochs = 0
        self._outbox = Outbox()
        self._timers = Timers()
        self._halves = Halves(self.view, self._outbox, self.policies, self._next_epoch)
        self._matcher = Matcher(self.view, self._outbox, self.policies, self._timers, self._next_epoch, self._halves)
        self._ledger = Ledger(self.view, self._outbox, self._matcher, self.policies)
        self._matcher.consult(self._ledger.inputs, self._ledger.settle)
        handovers = HandOvers(self.view, self._outbox, self.policies)
        self._trials = Trials(self.view, self._outbox, self._ledger, self._matcher, self._timers)
        self._attempts = Attempts(
            self.view,
            self._outbox,
            self.policies,
            self._ledger,
            self._matcher,
            self._trials,
            handovers,
            self._halves,
        )
        self._fleet = Fleet(
            self.view,
            self._outbox,
            self.policies,
            self._ledger,
            self._matcher,
            self._timers,
            self._trials,
            handovers,
            self._next_epoch,
        )

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Take one event at ``now`` (seconds, never falling); what is to be done about it, in order.

        Raises ``ValueError`` where the event contradicts what the caller said before (an id used twice).
        """
        return self.handle_together((event,), now)[0]

    def handle_together(self, events: Sequence[ev.Event], now: float) -> list[list[Action]]:
        """The same for events of one moment: jobs and servers are brought together once, after the last of them.

        What is to be done about each, in order; what the bringing together leads to is the last one's.
        """
        told: list[list[Action]] = []
        for event in events:
            self._outbox.cause += 1
            is_due = not told and self._alarms(now)
            self._dispatch(event, now)
            self._halves.settle(None if is_due else event, now)
            told.append(self._outbox.drain())
        self._matcher.pump(now)
        told[-1] += self._outbox.drain()
        return told

    def standing(self, request_id: RequestId, now: float) -> Standing | None:
        """Where a request stands, ``now`` on the clock of ``handle``; None if it is not under way. Changes nothing."""
        return self._standings.of(request_id, now)

    def no_room(self, model: ModelKey, now: float) -> str:
        """Why nobody holds all roles of the model, where that is for want of room; otherwise empty. Changes nothing."""
        return self.policies.room.no_room(model, self.view, now) if self.policies.room is not None else ""

    def next_wakeup(self) -> float | None:
        """When a ``Tick`` is due, on the clock of ``handle``."""
        return self._timers.next_at()

    def _dispatch(self, event: ev.Event, now: float) -> None:
        if isinstance(event, AttemptEvent):  # most of them; a match would look at one class after the other
            self._attempts.handle(event, now)
            return
        match event:
            case ev.LimitsRaised():
                self._fleet.handle(event, now)
            case ev.RequestArrived(request=spec):
                self._arrived(spec, now)
            case ev.RequestCancelled(request=request_id):
                self._cancelled(request_id)
            case ev.ResultTaken(job=job_id):
                self._taken(job_id, now)
            case ev.ResultLost():
                self._result_lost(event, now)
            case ev.PeerReached() | ev.PeerUnreached():
                self._trials.handle(event, now)
            case ev.Tick():
                pass  # the alarms have been served
            case _:
                self._fleet.handle(event, now)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _arrived(self, spec: RequestSpec, now: float) -> None:
        request = self._ledger.draft(spec, now)
        verdict = self.policies.admission.decide(request, self.view, now)
        if self.policies.roles is not None:
            self.policies.roles.arrived(request, self.view, now)
        if not verdict.admitted:
            self._outbox.reject(spec.id, verdict)
            request.dissolve()
            return
        self._outbox.admit(spec.id, verdict.predicted_seconds, verdict.reason)
        for observer in self.policies.observers:
            observer.opened(request, self.view, now)
        self._ledger.open(request, now)
        self._timers.set(Alarm.DEADLINE, spec.id, spec.deadline)

    def _cancelled(self, request_id: RequestId) -> None:
        request = self.view.live.get(request_id)
        if request is not None:
            self._ledger.end(request, "the client is gone")

    def _taken(self, job_id: JobId, now: float) -> None:
        job = self.view.jobs.get(job_id)
        if job is not None and job.holder is not None and not job.taken:
            holder = job.holder
            self._ledger.taken(job, now)
            self._trials.reached(GATEWAY, holder, now)

    def _result_lost(self, event: ev.ResultLost, now: float) -> None:
        """Its holder lives and does not give it: that may be as true of the next one."""
        job = self.view.jobs.get(event.job)
        if job is None or job.holder is None or all(output.handle != event.handle for output in job.outputs):
            return
        self._trials.suspect(GATEWAY, job.holder, now)
        if job.spec.optional:
            self._ledger.drop(job, "its picture could not be fetched", now)
            return
        job.avoid.add(job.holder)
        if event.unreached:
            job.unreached += 1
        else:
            job.failures += 1
        if job.failures >= self.policies.max_failures or job.unreached >= MAX_UNREACHED:
            self._ledger.fail(job.request, "engine_error", "finished pictures could not be fetched from their servers")
        else:
            self._ledger.lost((job,), now)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _alarms(self, now: float) -> bool:
        """Whether any was due."""
        due = self._timers.next_at()
        if due is None or due > now:
            return False
        for alarm, subject in self._timers.pop_due(now):
            match alarm:
                case Alarm.DEADLINE:
                    self._expire(RequestId(subject), now)
                case Alarm.REACH:
                    self._trials.alarm(now)
                case Alarm.LEAD | Alarm.ROLES:
                    self._fleet.alarm(alarm, subject, now)
        return True

    def _expire(self, request_id: RequestId, now: float) -> None:
        request = self.view.live.get(request_id)
        if request is None:
            return
        nobody = self._roles_without_holder(request)
        if nobody:
            why = self.no_room(request.spec.model, now)
            message = f"no server held the role {' or '.join(nobody)} in time"
            self._ledger.fail(request, "no_capacity", f"{message}: {why}" if why else message)
        else:
            self._ledger.fail(request, "deadline", "the deadline passed before every picture was ready")

    def _roles_without_holder(self, request: Request) -> list[str]:
        needed = {job.spec.role for job in request.jobs.values() if job.holder is None and not job.taken}
        return sorted(role for role in needed if not self.view.serving(request.spec.model, role))

    def _next_epoch(self) -> Epoch:
        self._epochs += 1
        return Epoch(self._gateway, self._epochs)
