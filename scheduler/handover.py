"""Denoising jobs that go on elsewhere, from the step at which their server stops: asked for here, decided by policy."""

from __future__ import annotations

from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.state import Attempt, Server
from scheduler.transitions import COMMITTED
from scheduler.view import View
from wire.types import Role


class HandOvers:
    def __init__(self, view: View, outbox: Outbox, policies: Policies):
        self._view = view
        self._outbox = outbox
        self._policies = policies

    def consider(self, server: Server, now: float) -> None:
        """Ask the server for those of its dit jobs that had better go on elsewhere. It answers ``JobHandedOver``, or
        with the job's end where that comes first; until then the job is its own."""
        policy = self._policies.migration
        if policy is None or not server.spec.software:
            return
        for attempt in [attempt for attempt in server.attempts.values() if _is_open(attempt)]:
            reason = policy.worth(attempt, self._view, now)
            if reason:
                attempt.is_leaving = True
                self._outbox.hand_over(server.id, (attempt.epoch,), reason)


def _is_open(attempt: Attempt) -> bool:
    job = attempt.job
    is_dit = job.spec.role is Role.DIT and not job.spec.optional
    if job.spec.work.step_cache and job.request.spec.exact:
        return False  # what its steps remember stays behind, and the rest of them would be others
    return is_dit and not attempt.is_leaving and job.attempt is attempt and job.state in COMMITTED
