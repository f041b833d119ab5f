"""Guidance on two servers: one that has nothing to do computes half of another's guided steps, until it has.

Whoever helps counts as idle for everybody else, so a job goes there as if it did nothing; it is told to stop first,
and does so after the denoiser's call that it is in. Nothing of the job is its own: whatever becomes of it, the attempt
that it helps goes on, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from scheduler import events as ev
from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.spec import Input
from scheduler.state import Attempt, Help, Server
from scheduler.transitions import COMMITTED, JobState
from scheduler.view import View
from wire.types import Epoch, Role

REST_SECONDS = 60.0
"""For which a server that could not help is not asked again: it may not reach others."""

ON_SERVER = (ev.JobFetched, ev.JobStarted, ev.JobProgressed, ev.JobPaused, ev.JobPreviewed)
PASSING = (*ON_SERVER, ev.LimitsRaised, ev.RequestArrived)
"""Events after which no attempt of another server is over, paused or leaving; roles that somebody gives up are told by
``View.served``."""

LAST_WORDS = (ev.JobDone, ev.JobFailed, ev.JobHandedOver, ev.JobCancelled)


class Halves:
    def __init__(self, view: View, outbox: Outbox, policies: Policies, next_epoch: Callable[[], Epoch]):
        self._view = view
        self._outbox = outbox
        self._policies = policies
        self._next_epoch = next_epoch
        self._helps: dict[Epoch, Help] = {}
        self._served = -1
        """``View.served`` when all of them were looked at."""

    def find(self, attempt: Attempt, idle: Iterable[Server], now: float) -> None:
        """Have one of these, if that pays, help an attempt that is about to be sent."""
        policy = self._policies.guidance
        if policy is None or not self._may_be_helped(attempt):
            return
        chosen = policy.helper(attempt, self._able(attempt, idle, now), self._view)
        if chosen is None:
            return
        server, share = chosen
        help_ = Help(self._next_epoch(), attempt, server, share)
        server.sent[Role.DIT] = server.sent.get(Role.DIT, 0) + 1
        server.help = attempt.help = self._helps[help_.epoch] = help_
        attempt.share, attempt.was_helped = False, True
        attempt.stretch(share, now)

    def send(self, attempt: Attempt, inputs: tuple[Input, ...]) -> None:
        """Tell whoever helps the attempt, which has just been sent itself."""
        if attempt.help is not None:
            self._outbox.help(attempt.help, inputs)

    def give_back(self, server: Server, now: float) -> None:
        """Its device gets a job: it helps nobody any more."""
        for each in server.sharers or (server,):
            if each.help is not None:
                self._end(each.help, "it is needed for a job of its own", now)

    def settle(self, event: ev.Event | None, now: float) -> None:
        """After whatever has happened, and be it only ``event``: who helps an attempt that needs no help any more, or
        that cannot, is told."""
        for help_ in self._concerned(event):
            if why := self._why_over(help_):
                self._end(help_, why, now)

    def heard(self, server: Server, event: ev.Event, epoch: Epoch, now: float) -> bool:
        """Whether what the server says is about its help."""
        help_ = server.help
        if help_ is None or help_.epoch != epoch:
            return False
        if isinstance(event, LAST_WORDS):
            if _was_no_help(event, help_):
                server.helps_from = now + REST_SECONDS
            self._end(help_, "", now)
        return True

    def _concerned(self, event: ev.Event | None) -> list[Help]:
        """Most events concern none but those that help on their server: with hundreds of others, to look at all of them
        each time would take longer than everything else."""
        if not self._helps:
            return []
        if self._served != self._view.served or not isinstance(event, PASSING):
            self._served = self._view.served
            return list(self._helps.values())
        server = self._view.servers.get(event.server) if isinstance(event, ON_SERVER) else None
        return [each.help for each in server.attempts.values() if each.help is not None] if server is not None else []

    def _end(self, help_: Help, why: str, now: float) -> None:
        """``why`` its server is to be told that it is over; empty if that need not be."""
        del self._helps[help_.epoch]
        help_.server.help = help_.attempt.help = None
        help_.attempt.stretch(1 / help_.share, now)
        if why and self._view.servers.get(help_.server.id) is help_.server:
            self._outbox.cancel(help_.server.id, (help_.epoch,), why)

    def _why_over(self, help_: Help) -> str:
        attempt, server = help_.attempt, help_.server
        job = attempt.job
        if job.attempt is not attempt or job.state not in COMMITTED:
            return "what it helps has ended"
        if job.state is JobState.PAUSED or attempt.is_leaving:
            return "what it helps waits, or goes elsewhere"
        is_here = self._view.servers.get(server.id) is server
        if not is_here or server.is_leaving or server.switching is not None or Role.DIT not in server.serving:
            return "it gives the role up"
        return ""

    def _may_be_helped(self, attempt: Attempt) -> bool:
        """It has its device for itself from the start, and began nowhere else; nothing is wrong with it so far."""
        job, server = attempt.job, attempt.server
        spec = job.spec
        has_halves = spec.role is Role.DIT and spec.work.cfg and spec.work.more_passes <= 0 and not spec.work.step_cache
        if not has_halves or spec.is_steered or spec.optional or not server.spec.shares_guidance:
            return False
        is_fresh = not (job.first_step or job.avoid or job.losses or job.failures)
        return is_fresh and server.on_device() == [attempt]

    def _able(self, attempt: Attempt, idle: Iterable[Server], now: float) -> Iterator[Server]:
        spec, failing = attempt.server.spec, self._view.reach.failing
        for server in idle:
            if (server.id, spec.id) in failing or (spec.id, server.id) in failing:
                continue  # they would not find each other
            if server is attempt.server or not server.is_idle or not server.may_run(Role.DIT, beside=1):
                continue  # what it helps with counts as well, and a job must still be able to go there
            if server.is_helping or server.switching is not None:
                continue
            if not (server.spec.shares_guidance and server.spec.computes_as(spec)):
                continue
            if attempt.job.spec.lacks(server.spec.adapters) or server.helps_from > now:
                continue
            if not any(self._view.waiting(each.spec.model, role) for each in server.sharers or (server,)
                       for role in each.serving):  # fmt: skip
                yield server


def _was_no_help(event: ev.Event, help_: Help) -> bool:
    """It failed, or ended in the midst of what it helped: one of the two may not reach the other."""
    if isinstance(event, ev.JobDone):
        return 2 * event.timings.steps < help_.attempt.job.spec.work.steps
    return isinstance(event, ev.JobFailed)
