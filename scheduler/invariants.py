"""What must hold after every event. For tests and the simulator: it looks at everything, so it is not fast."""

from __future__ import annotations

from collections import Counter

from scheduler.matcher import SLOTS
from scheduler.state import Job, Server
from scheduler.transitions import COMMITTED, JobState
from scheduler.view import View

MAX_BATCH = 32
"""No policy makes larger ones: a stage server refuses them (``stage_server.runtime.credits``)."""


class Violation(AssertionError):
    """The scheduler has lost or doubled something."""


def check(view: View) -> None:
    """Raise ``Violation`` naming the first job or server that is not as it must be."""
    for request in view.live.values():
        for job in request.jobs.values():
            _check_job(view, job)
    for server in view.servers.values():
        _check_server(view, server)
    queued = sum(len(queue) for queue in view.queues.values())
    waiting = sum(job.queued_key is not None for job in view.jobs.values())
    _demand(queued == waiting, f"{queued} jobs in queues, {waiting} jobs think that they are in one")


def _check_job(view: View, job: Job) -> None:
    name = f"job {job.spec.id} ({job.state})"
    committed = job.state in COMMITTED
    _demand(view.jobs.get(job.spec.id) is job, f"{name} is not on record")
    _demand(committed == (job.attempt is not None), f"{name}: attempt {job.attempt and job.attempt.epoch}")
    _demand((job.queued_key is not None) == job.is_runnable, f"{name}: runnable and queued differ")
    if job.attempt is not None:
        server = job.attempt.server
        _demand(view.servers.get(server.id) is server, f"{name} is on {server.id}, which is gone")
        _demand(server.attempts.get(job.attempt.epoch) is job.attempt, f"{name}: {server.id} does not know of it")
    if job.holder is not None:
        _demand(job.state is JobState.DONE, f"{name} has outputs")
        held = view.servers[job.holder].holds
        _demand(all(held.get(o.handle) is job for o in job.outputs), f"{name}: {job.holder} does not hold its outputs")
    if job.state is JobState.WAITING:
        lacking = {need for need in job.spec.needs if job.request.jobs[need].holder is None}
        _demand(lacking == job.missing, f"{name} misses {sorted(job.missing)}, really {sorted(lacking)}")
        stuck = [need for need in lacking if job.request.jobs[need].state is JobState.DONE]
        _demand(not stuck, f"{name} waits for {stuck}, which will not run again")


def _check_server(view: View, server: Server) -> None:
    name = f"server {server.id}"
    batches = server.batches()
    _demand(len(batches) <= SLOTS + 1, f"{name} has {len(batches)} batches")
    owners = Counter(attempt.job.spec.id for attempt in server.attempts.values() if attempt.job.attempt is attempt)
    _demand(all(count == 1 for count in owners.values()), f"{name} has a job twice: {owners}")
    for role, sent in server.sent.items():
        most = server.limits.get(role, 0) + MAX_BATCH - 1  # the last credit is good for a whole batch
        _demand(sent <= most, f"{name} got {sent} {role} jobs, more than it allowed")
    for job in server.holds.values():
        _demand(job.holder == server.id, f"{name} holds outputs of {job.spec.id}, which names {job.holder}")
    for role in server.serving:
        _demand(server.id in view.holding(server.spec.model, role), f"{name} serves {role} but is not listed")


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
