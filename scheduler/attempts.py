"""What stage servers report about the attempts they were given.

A report about an attempt that is no longer its job's is late: whatever it left behind is cleaned up and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler import events as ev
from scheduler.ledger import Ledger
from scheduler.matcher import Matcher
from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.spec import Input
from scheduler.state import Attempt, Job, Server
from scheduler.transitions import COMMITTED, JobState
from scheduler.trials import Trials
from scheduler.view import View

AttemptEvent = (
    ev.JobFetched
    | ev.JobStarted
    | ev.JobPaused
    | ev.JobProgressed
    | ev.JobPreviewed
    | ev.JobDone
    | ev.JobFailed
    | ev.JobCancelled
)

REFUSED = "draining"
"""The server gave the role up while the job was on its way: nobody's failure."""

SPOILT = "non_finite"
"""NaN or infinity came out: of a device that miscalculates, or as it would anywhere. A second server tells which."""

MAX_UNREACHED = 10
"""Attempts of a job that may end because somebody could not be reached, before its request fails."""


class Attempts:
    def __init__(
        self, view: View, outbox: Outbox, policies: Policies, ledger: Ledger, matcher: Matcher, trials: Trials
    ):
        self._view = view
        self._outbox = outbox
        self._policies = policies
        self._ledger = ledger
        self._matcher = matcher
        self._trials = trials

    def handle(self, event: AttemptEvent, now: float) -> None:
        server = self._view.servers.get(event.server)
        if server is None:
            return  # it was declared lost: it must say Hello again, which cleans up
        attempt = server.attempts.get(event.epoch)
        if attempt is None:
            self._stranger(server, event)
            return
        if attempt.job.attempt is attempt and attempt.job.state in COMMITTED:
            self._report(attempt, event, now)
        else:
            self._late(attempt, event)
        self._matcher.touch(server)

    def _stranger(self, server: Server, event: AttemptEvent) -> None:
        """Of an older epoch: it must leave nothing behind."""
        if isinstance(event, ev.JobDone):
            self._outbox.release(server.id, [output.handle for output in event.outputs], "of a former epoch")
        elif not isinstance(event, ev.JobFailed | ev.JobCancelled):
            self._outbox.cancel(server.id, (event.epoch,), "of a former epoch")

    def _late(self, attempt: Attempt, event: AttemptEvent) -> None:
        """The attempt was cancelled, and only its end still matters."""
        if not isinstance(event, ev.JobDone | ev.JobFailed | ev.JobCancelled):
            return
        self._close(attempt)
        if isinstance(event, ev.JobDone):
            self._outbox.release(attempt.server.id, [output.handle for output in event.outputs], "no longer wanted")
        if attempt.job.attempt is attempt and attempt.job.state is JobState.CANCELLING:
            attempt.job.become(JobState.CANCELLED)
            attempt.job.attempt = None

    def _report(self, attempt: Attempt, event: AttemptEvent, now: float) -> None:
        job = attempt.job
        match event:
            case ev.JobFetched() if job.state is JobState.FETCHING:
                job.become(JobState.READY)
                self._trials.fetched(job, attempt.server.id, now)
            case ev.JobStarted() if job.state is not JobState.RUNNING:
                job.become(JobState.RUNNING)
                attempt.resume(now)
            case ev.JobPaused() if job.state is JobState.RUNNING:
                job.become(JobState.PAUSED)
                attempt.pause(now)
            case ev.JobProgressed():
                self._progressed(attempt, event, now)
            case ev.JobPreviewed():
                self._shown(attempt, event, now)
            case ev.JobDone():
                fault = _fault(attempt, event)
                if fault:
                    self._failed(attempt, _failure(event, fault), now)
                else:
                    self._done(attempt, event, now)
            case ev.JobFailed():
                self._failed(attempt, event, now)
            case ev.JobCancelled():
                # Nobody cancelled it here: the server gave it up by itself, as after a long silence of ours.
                self._failed(attempt, _failure(event, "a stage server gave the job up"), now)

    def _progressed(self, attempt: Attempt, event: ev.JobProgressed, now: float) -> None:
        since = event.step - attempt.step
        attempt.step, attempt.steps, attempt.step_seconds = event.step, event.steps, event.step_seconds
        attempt.reported_at = now
        if since > 0:
            members = sum(other.batch == attempt.batch for other in attempt.server.attempts.values())
            self._observe(attempt, event.step_seconds * since, members, steps=since)

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
        self._close(attempt)
        if not attempt.steps:  # progress reports have told it already
            self._observe(attempt, event.timings.compute, min(event.timings.batch, attempt.members))
        for observer in self._policies.observers:
            observer.done(attempt, event.timings, now)
        self._ledger.done(attempt, event.outputs, now)

    def _observe(self, attempt: Attempt, seconds: float, members: int, steps: int = 0) -> None:
        seen = attempt.job.spec.work
        if (members, steps or seen.steps) != (seen.batch, seen.steps):
            seen = replace(seen, batch=members, steps=steps or seen.steps)
        spec = attempt.server.spec
        self._view.cost.observe(seen, spec.target, spec.name, seconds)

    def _failed(self, attempt: Attempt, event: ev.JobFailed, now: float) -> None:
        job = attempt.job
        self._close(attempt)
        is_beyond_hope = not event.retryable or (event.code == SPOILT and job.is_spoilt)
        if event.code == SPOILT:
            job.is_spoilt = True
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
            self._ledger.drop(job, event.message)
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

    def _close(self, attempt: Attempt) -> None:
        del attempt.server.attempts[attempt.epoch]


def _may_refuse(attempt: Attempt) -> bool:
    """Whether the server was told, or has told, that it gives the role up."""
    server = attempt.server
    return server.is_leaving or server.switching is not None or attempt.job.spec.role not in server.serving


def _fault(attempt: Attempt, event: ev.JobDone) -> str:
    """Why what a server says it made cannot be; empty if it can."""
    server, handles = attempt.server, [output.handle for output in event.outputs]
    if len(set(handles)) < len(handles) or any(handle in server.holds or handle in server.shown for handle in handles):
        return "a stage server used a handle twice"
    return "" if handles or attempt.job.spec.is_final else "a stage server left no output"


def _failure(event: ev.JobDone | ev.JobCancelled, message: str) -> ev.JobFailed:
    return ev.JobFailed(event.server, event.epoch, "engine_error", message, retryable=True)
