"""What must hold after every event. For tests and the simulator: it looks at everything, so it is not fast."""

from __future__ import annotations

from collections.abc import Iterator

from scheduler.matcher import SLOTS
from scheduler.state import Job, Server
from scheduler.transitions import COMMITTED, JobState
from scheduler.trials import is_in_vain
from scheduler.view import View
from wire.types import ServerId


class Violation(AssertionError):
    """The scheduler has lost or doubled something."""


def check(view: View) -> None:
    """Raise ``Violation`` naming the first job or server that is not as it must be."""
    for complaint in _complaints(view):
        raise Violation(complaint)


def _complaints(view: View) -> Iterator[str]:
    for request in view.live.values():
        for job in request.jobs.values():
            yield from _about_job(view, job)
    for server in view.servers.values():
        yield from _about_server(view, server)
    queued = sum(len(queue) for queue in view.queues.values())
    waiting = sum(job.queued_key is not None for job in view.jobs.values())
    if queued != waiting:
        yield f"{queued} jobs in queues, {waiting} jobs think that they are in one"


def _about_job(view: View, job: Job) -> Iterator[str]:
    attempt = job.attempt
    if view.jobs.get(job.spec.id) is not job:
        yield f"{_name(job)} is not on record"
    if (job.state in COMMITTED) != (attempt is not None):
        yield f"{_name(job)}: attempt {attempt and attempt.epoch}"
    if (job.queued_key is not None) != job.is_runnable:
        yield f"{_name(job)}: runnable and queued differ"
    if attempt is not None and view.servers.get(attempt.server.id) is not attempt.server:
        yield f"{_name(job)} is on {attempt.server.id}, which is gone"
    if attempt is not None and attempt.server.attempts.get(attempt.epoch) is not attempt:
        yield f"{_name(job)}: {attempt.server.id} does not know of it"
    if job.holder is not None:
        yield from _about_outputs(view, job, job.holder)
    if job.state is JobState.WAITING:
        yield from _about_inputs(job)


def _about_outputs(view: View, job: Job, holder: ServerId) -> Iterator[str]:
    if job.state is not JobState.DONE:
        yield f"{_name(job)} has outputs"
    held = view.servers[holder].holds
    if any(held.get(output.handle) is not job for output in job.outputs):
        yield f"{_name(job)}: {holder} does not hold its outputs"


def _about_inputs(job: Job) -> Iterator[str]:
    lacking = {need for need in job.spec.needs if job.request.jobs[need].holder is None}
    if lacking != job.missing:
        yield f"{_name(job)} misses {sorted(job.missing)}, really {sorted(lacking)}"
    stuck = [need for need in lacking if job.request.jobs[need].state is JobState.DONE]
    if stuck:
        yield f"{_name(job)} waits for {stuck}, which will not run again"


def _about_server(view: View, server: Server) -> Iterator[str]:
    name = f"server {server.id}"
    batches = len({attempt.batch for attempt in server.attempts.values()})
    if batches > SLOTS + 1:
        yield f"{name} has {batches} batches"
    paused = {a.batch for a in server.attempts.values() if a.job.attempt is a and a.job.state is JobState.PAUSED}
    if len(paused) > 1:
        yield f"{name} has {len(paused)} batches paused"
    # Of a dropped preview nothing is on record; the next run of its source may show another of its name meanwhile.
    jobs = [a.job for a in server.attempts.values() if a.job.attempt is a and view.jobs.get(a.job.spec.id) is a.job]
    owned = [job.spec.id for job in jobs]
    if len(set(owned)) < len(owned):
        yield f"{name} has a job twice: {sorted(owned)}"
    for role, sent in server.sent.items():
        if sent > server.limits.get(role, 0):
            yield f"{name} got {sent} {role} batches, more than it allowed"
    for job in server.holds.values():
        if job.holder != server.id:
            yield f"{name} holds outputs of {job.spec.id}, which names {job.holder}"
    for role in server.serving:
        if server.id not in view.serving(server.spec.model, role):
            yield f"{name} serves {role} but is not listed"
    yield from _about_what_is_set_aside(server)


def _about_what_is_set_aside(server: Server) -> Iterator[str]:
    for attempt in server.attempts.values():
        job = attempt.job
        if job.attempt is attempt and job.state in COMMITTED and is_in_vain(job, server):
            yield f"server {server.id} works on {_name(job)}, whose role is set aside there"
    if server.serving & server.aside:
        yield f"server {server.id} serves {sorted(server.serving)}, of which {sorted(server.aside)} are set aside"


def _name(job: Job) -> str:
    return f"job {job.spec.id} ({job.state})"
