"""What stage servers report about the attempts they were given.

A report about an attempt that is no longer its job's is late: whatever it left behind is cleaned up and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler import events as ev
from scheduler.halves import Halves
from scheduler.handover import HandOvers
from scheduler.ledger import Ledger
from scheduler.matcher import Matcher
from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.spec import Input
from scheduler.state import Attempt, Job, Server
from scheduler.transitions import COMMITTED, JobState
from scheduler.trials import Trials
from scheduler.view import View
from wire.types import STAGES, Handle

AttemptEvent = (
    ev.JobFetched
    | ev.JobStarted
    | ev.JobPaused
    | ev.JobProgressed
    | ev.JobPreviewed
    | ev.JobDone
    | ev.JobFailed
    | ev.JobHandedOver
    | ev.JobCancelled
)

LastWord = ev.JobDone | ev.JobFailed | ev.JobHandedOver | ev.JobCancelled
LAST_WORDS = (ev.JobDone, ev.JobFailed, ev.JobHandedOver, ev.JobCancelled)
LEAVING = (ev.JobDone, ev.JobHandedOver, ev.JobPreviewed)
"""By which a server may have something more in its store."""

REFUSED = "draining"
"""The server gave the role up while the job was on its way: nobody's failure."""

SPOILT = "non_finite"
"""NaN or infinity came out: of a device that miscalculates, or as it would anywhere. A second server tells which."""

STUCK = "stuck"
"""It gave no sign of life, and its server ends itself: of a device that hangs, or of a job that hangs every device."""

MAX_STUCK = 2
"""Servers that a job may cost so before its request fails: a second one tells whose fault it is, as with ``SPOILT``."""

MAX_UNREACHED = 10
"""Attempts of a job that may end because somebody could not be reached, before its request fails."""


class Attempts:
    def __init__(
        self,
        view: View,
        outbox: Outbox,
        policies: Policies,
        ledger: Ledger,
        matcher: Matcher,
        trials: Trials,
        handovers: HandOvers,
        halves: Halves,
    ):
        self._view = view
        self._outbox = outbox
        self._policies = policies
        self._ledger = ledger
        self._matcher = matcher
        self._trials = trials
        self._handovers = handovers
        self._halves = halves

    def handle(self, event: AttemptEvent, now: float) -> None:
        server = self._view.servers.get(event.server)
        if server is None:
            return  # it was declared lost: it must say Hello again, which cleans up
        attempt = server.attempts.get(event.epoch)
        if attempt is None:
            if not self._halves.heard(server, event, event.epoch, now):
                self._stranger(server, event)
            return
        if attempt.job.attempt is attempt and attempt.job.state in COMMITTED:
            self._report(attempt, event, now)
        else:
            self._late(attempt, event, now)
        self._matcher.touch(server, only_pace=isinstance(event, ev.JobProgressed))

    def _stranger(self, server: Server, event: AttemptEvent) -> None:
        """Of an older epoch: it must leave nothing behind."""
        if isinstance(event, LEAVING) and (handles := _left(event)):
            self._outbox.release(server.id, handles, "of a former epoch")
        if not isinstance(event, LAST_WORDS):
            self._outbox.cancel(server.id, (event.epoch,), "of a former epoch")

    def _late(self, attempt: Attempt, event: AttemptEvent, now: float) -> None:
        """The attempt was cancelled, and only its end still matters, and what it has left."""
        if isinstance(event, LEAVING):
            self._outbox.release(attempt.server.id, _left(event), "no longer wanted")
        if not isinstance(event, LAST_WORDS):
            return
        self._close(attempt, now)
        if attempt.job.attempt is attempt and attempt.job.state is JobState.CANCELLING:
            attempt.job.become(JobState.CANCELLED)
            attempt.job.attempt = None

    def _report(self, attempt: Attempt, event: AttemptEvent, now: float) -> None:
        job = attempt.job
        match event:
            case ev.JobFetched() if job.state is JobState.FETCHING:
                job.become(JobState.READY)
                self._fetched(attempt, now)
            case ev.JobStarted() if job.state is not JobState.RUNNING:
                job.become(JobState.RUNNING)
                self._computes(attempt, 1, now)
                self._ledger.forget_handed_over(job)
            case ev.JobPaused() if job.state is JobState.RUNNING:
                job.become(JobState.PAUSED)
                self._computes(attempt, 0, now)
                self._handovers.consider(attempt.server, now)
            case ev.JobProgressed():
                self._progressed(attempt, event, now)
            case ev.JobPreviewed():
                self._shown(attempt, event, now)
            case ev.JobDone() | ev.JobFailed() | ev.JobHandedOver() | ev.JobCancelled():
                self._ended(attempt, event, now)

    def _fetched(self, attempt: Attempt, now: float) -> None:
        job = attempt.job
        self._trials.fetched(job, attempt.server.id, now)
        self._ledger.forget_handed_over(job)
        holders = dict.fromkeys(job.request.jobs[need].holder for need in job.spec.needs)
        for server in [self._view.servers[holder] for holder in holders if holder in self._view.servers]:
            if server.is_leaving:
                self._ledger.relieve(server, now)

    def _ended(self, attempt: Attempt, event: LastWord, now: float) -> None:
        match event:
            case ev.JobDone():
                fault = _fault(attempt, event)
                if fault:
                    self._failed(attempt, _failure(event, fault), now)
                else:
                    self._done(attempt, event, now)
            case ev.JobFailed():
                self._failed(attempt, event, now)
            case ev.JobHandedOver():
                self._handed_over(attempt, event, now)
            case ev.JobCancelled():
                # Nobody cancelled it here: the server gave it up by itself, as after a long silence of ours.
                self._failed(attempt, _failure(event, "a stage server gave the job up"), now)

    def _progressed(self, attempt: Attempt, event: ev.JobProgressed, now: float) -> None:
        since = event.step - attempt.step
        company = attempt.reported(event.step, event.steps, event.step_seconds, now)
        if since > 0:
            self._observe(attempt, event.step_seconds * since, company, steps=since)
        self._handovers.consider(attempt.server, now)

    def _handed_over(self, attempt: Attempt, event: ev.JobHandedOver, now: float) -> None:
        self._close(attempt, now)
        for observer in self._policies.observers:
            observer.handed_over(attempt, event.timings, now)
        server, output = attempt.server, event.output
        if output is None:
            self._ledger.requeue(attempt.job, now)
        elif event.step < attempt.job.first_step or output.handle in {
            *server.holds,
            *server.shown,
            *server.handed_over,
        }:
            self._outbox.release(server.id, (output.handle,), "it cannot be gone on from")
            self._ledger.requeue(attempt.job, now)
        else:
            self._ledger.handed_over(attempt, event.step, output, now)

    def _shown(self, attempt: Attempt, event: ev.JobPreviewed, now: float) -> None:
        """What nobody asked for, or has already, is dropped where it lies."""
        server, output = attempt.server, event.output
        asked = attempt.job.spec.previews[event.index : event.index + 1]
        known = output.handle in server.holds or output.handle in server.shown
        if not asked or asked[0].id in self._view.jobs or known:
            self._outbox.release(server.id, (output.handle,), "nobody asked for it")
        else:
            self._ledger.add_preview(asked[0], attempt.job, Input(output.handle, server.id, output.nbytes), now)

    def _done(self, attempt: Attempt, event: ev.JobDone, now: float) -> None:
        self._close(attempt, now)
        if not attempt.steps:  # progress reports have told it already
            self._observe(attempt, event.timings.compute, min(event.timings.batch, attempt.most_company))
        for observer in self._policies.observers:
            observer.done(attempt, event.timings, now)
        self._ledger.done(attempt, event.outputs, now)

    def _observe(self, attempt: Attempt, seconds: float, company: float, steps: int = 0) -> None:
        if attempt.was_helped:
            return
        seen = attempt.job.spec.work
        if (company, steps or seen.steps) != (seen.batch, seen.steps):
            seen = replace(seen, batch=company, steps=steps or seen.steps)
        spec = attempt.server.spec
        self._view.cost.observe(seen, spec.target, spec.name, seconds)

    def _failed(self, attempt: Attempt, event: ev.JobFailed, now: float) -> None:
        job = attempt.job
        self._close(attempt, now)
        is_beyond_hope = not event.retryable or (event.code == SPOILT and job.is_spoilt)
        if event.code == SPOILT:
            job.is_spoilt = True
            job.avoid.add(attempt.server.id)
        if event.code == STUCK:
            job.stuck += 1
            job.avoid.add(attempt.server.id)
        if event.unreached:
            job.unreached += 1
            job.avoid.add(attempt.server.id)
            is_beyond_hope |= job.unreached >= MAX_UNREACHED
        elif event.code != REFUSED or not _may_refuse(attempt):
            job.failures += 1
            for observer in self._policies.observers:
                observer.failed(attempt, is_fault=event.retryable and not event.lost_inputs, now=now)
        if job.spec.optional:
            self._ledger.drop(job, event.message, now)
            return
        if job.stuck >= MAX_STUCK:
            message = f"{job.stuck} stage servers stood still while they worked on this request, the last one: "
            self._ledger.give_up(job, event.code, message + event.message)
            return
        if is_beyond_hope or job.failures >= self._policies.max_failures:
            self._ledger.give_up(job, event.code, event.message)
            return
        self._ledger.lost(self._gone(attempt, event, now), now)
        if job.attempt is attempt:  # the loss of an input may have requeued it
            self._ledger.requeue(job, now)

    def _gone(self, attempt: Attempt, event: ev.JobFailed, now: float) -> list[Job]:
        """Those whose outputs are to be made anew, elsewhere if possible, since they could not be fetched.

        What its holder still has, as far as is known, is left to another server to fetch if there is one.
        """
        job, gone = attempt.job, []
        if job.handed_over is not None and job.handed_over.source.handle in event.lost_inputs:
            self._trials.suspect(attempt.server.id, job.handed_over.source.holder, now)
            self._ledger.forget_handed_over(job)
        for source in [job.request.jobs[need] for need in job.spec.needs]:
            handles = {output.handle for output in source.outputs}.intersection(event.lost_inputs)
            if not handles or source.holder is None:
                continue
            self._trials.suspect(attempt.server.id, source.holder, now)
            if handles <= set(event.unreached):
                able = self._view.serving(job.request.spec.model, job.spec.role).keys() - job.avoid
                if able - self._view.reach.unable((source.holder,)):
                    continue
            source.avoid.add(source.holder)
            gone.append(source)
        return gone

    def _computes(self, attempt: Attempt, company: int, now: float) -> None:
        attempt.keep_company(company, now)
        if attempt.share:
            attempt.server.regroup(attempt.group, now)

    def _close(self, attempt: Attempt, now: float) -> None:
        server = attempt.server
        del server.attempts[attempt.epoch]
        if attempt.share:
            server.regroup(attempt.group, now)


def _left(event: ev.JobDone | ev.JobHandedOver | ev.JobPreviewed) -> list[Handle]:
    match event:
        case ev.JobPreviewed(output=output):
            return [output.handle]
        case ev.JobDone(outputs=outputs):
            return [output.handle for output in outputs]
        case ev.JobHandedOver(output=output):
            return [] if output is None else [output.handle]


def _may_refuse(attempt: Attempt) -> bool:
    """Whether the server was told, or has told, that it gives the role up."""
    server = attempt.server
    return server.is_leaving or server.switching is not None or attempt.job.spec.role not in server.serving


def _fault(attempt: Attempt, event: ev.JobDone) -> str:
    """Why what a server says it made cannot be; empty if it can."""
    server, handles = attempt.server, [output.handle for output in event.outputs]
    if len(set(handles)) < len(handles) or any(handle in server.holds or handle in server.shown for handle in handles):
        return "a stage server used a handle twice"
    needs_none = attempt.job.spec.is_final or STAGES[attempt.job.spec.role].is_told
    return "" if handles or needs_none else "a stage server left no output"


def _failure(event: ev.JobDone | ev.JobCancelled, message: str) -> ev.JobFailed:
    return ev.JobFailed(event.server, event.epoch, "engine_error", message, retryable=True)
