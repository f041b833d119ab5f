"""What must hold after every event. For tests and the simulator: it looks at everything, so it is not fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scheduler.ledger import kept_before
from scheduler.matcher import SLOTS
from scheduler.state import Attempt, Job, Server
from scheduler.transitions import COMMITTED, JobState
from scheduler.trials import is_in_vain
from scheduler.view import View
from wire.types import Role, ServerId


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
    if job.handed_over is None and job.first_step and job.state is JobState.WAITING:
        yield f"{_name(job)} is to begin at step {job.first_step}, from nothing"
    if attempt is not None and job.spec.lacks(attempt.server.spec.adapters):
        yield f"{_name(job)} is on {attempt.server.id}, which has not all of {sorted(job.spec.adapters)}"
    if job.holder is not None:
        yield from _about_outputs(view, job, job.holder)
    if job.state is JobState.WAITING:
        yield from _about_inputs(job)


def _about_outputs(view: View, job: Job, holder: ServerId) -> Iterator[str]:
    if job.state is not JobState.DONE:
        yield f"{_name(job)} has outputs"
    held = view.servers[holder].holds if job.outputs else {}  # who left none may be gone
    if any(held.get(output.handle) is not job for output in job.outputs):
        yield f"{_name(job)}: {holder} does not hold its outputs"


def _about_inputs(job: Job) -> Iterator[str]:
    lacking = {need for need in job.spec.needs if job.request.jobs[need].holder is None}
    if lacking | kept_before(job) != job.missing:
        yield f"{_name(job)} misses {sorted(job.missing)}, really {sorted(lacking | kept_before(job))}"
    stuck = [need for need in lacking if job.request.jobs[need].state is JobState.DONE]
    if stuck:
        yield f"{_name(job)} waits for {stuck}, which will not run again"


def _about_server(view: View, server: Server) -> Iterator[str]:
    name = f"server {server.id}"
    yield from _about_groups(server)
    # Of a dropped preview nothing is on record; the next run of its source may show another of its name meanwhile.
    jobs = [a.job for a in server.attempts.values() if a.job.attempt is a and view.jobs.get(a.job.spec.id) is a.job]
    owned = [job.spec.id for job in jobs]
    if len(set(owned)) < len(owned):
        yield f"{name} has a job twice: {sorted(owned)}"
    for role, sent in server.sent.items():
        if sent > server.limits.get(role, 0):
            yield f"{name} got {sent} {role} jobs, more than it allowed"
    for job in server.holds.values():
        if job.holder != server.id:
            yield f"{name} holds outputs of {job.spec.id}, which names {job.holder}"
    for role in server.serving:
        if server.id not in view.serving(server.spec.model, role):
            yield f"{name} serves {role} but is not listed"
    if server.sharers != (view.devices[server.spec.device] if server.spec.device else []):
        yield f"{name} does not know who shares its device"
    yield from _about_help(view, server)
    yield from _about_what_was_handed_over(server)
    yield from _about_what_is_set_aside(server)


def _about_help(view: View, server: Server) -> Iterator[str]:
    """Who helps does nothing else, and what it helps is under way, elsewhere, and knows."""
    for attempt in server.attempts.values():
        if attempt.help is not None and attempt.help.server.help is not attempt.help:
            yield f"server {server.id} is helped with {_name(attempt.job)} by {attempt.help.server.id}, which is not so"
    if server.help is None:
        return
    attempt = server.help.attempt
    told = f"server {server.id} helps with {_name(attempt.job)}"
    if not server.is_idle:
        yield f"{told}, and has jobs of its own"
    if server.is_leaving or server.switching is not None or Role.DIT not in server.serving:
        yield f"{told}, and gives the role up"
    if attempt.help is not server.help or attempt.job.attempt is not attempt:
        yield f"{told}, which does not know of it"
    if attempt.job.state not in COMMITTED or attempt.job.state is JobState.PAUSED or attempt.server is server:
        yield f"{told}, which computes nowhere else"
    if not server.spec.computes_as(attempt.server.spec) or view.servers.get(attempt.server.id) is not attempt.server:
        yield f"{told}, which is on {attempt.server.id}"


def _about_what_was_handed_over(server: Server) -> Iterator[str]:
    for job in server.handed_over.values():
        if job.handed_over is None or job.handed_over.source.holder != server.id:
            yield f"server {server.id} holds what {_name(job)} began, which goes on from {job.handed_over}"
        if job.state not in (JobState.WAITING, JobState.FETCHING):
            yield f"server {server.id} holds what {_name(job)} began, and has gone on from"


def _about_groups(server: Server) -> Iterator[str]:
    groups = {attempt.group for attempt in server.attempts.values()}
    on_device = {attempt.group for attempt in server.on_device()}
    if len(on_device) > SLOTS + 1:
        yield f"server {server.id} has {len(on_device)} groups on its device"
    paused = {a.group for a in server.attempts.values() if a.job.attempt is a and a.job.state is JobState.PAUSED}
    if len(paused) > 1:
        yield f"server {server.id} has {len(paused)} groups paused"
    for group in groups:
        yield from _about_group(server, server.group(group))


def _about_group(server: Server, group: list[Attempt]) -> Iterator[str]:
    """Those that compute together."""
    jobs = [attempt.job for attempt in group]
    if len(group) > 1 and not all(attempt.share for attempt in group):
        yield f"server {server.id}: {_names(jobs)} are together, and not all of them share"
    if not all(job.spec.is_like(jobs[0].spec) for job in jobs):
        yield f"server {server.id}: {_names(jobs)} are together, and of different kinds"
    if len(group) > 1 and any(job.request.spec.exact or job.spec.optional for job in jobs):
        yield f"server {server.id}: one of {_names(jobs)} was to have the device alone"
    most = server.together(jobs[0].spec.role)
    if len(group) > most + 1:
        yield f"server {server.id}: {_names(jobs)} are together, and {most} may be, with one in line"
    computing = sum(attempt.company > 0 for attempt in group)
    if any(attempt.company not in (0, computing) for attempt in group):
        yield f"server {server.id}: {computing} of {_names(jobs)} compute, which not all of them know"


def _about_what_is_set_aside(server: Server) -> Iterator[str]:
    for attempt in server.attempts.values():
        job = attempt.job
        if job.attempt is attempt and job.state in COMMITTED and is_in_vain(job, server):
            yield f"server {server.id} works on {_name(job)}, whose role is set aside there"
    if server.serving & server.aside:
        yield f"server {server.id} serves {sorted(server.serving)}, of which {sorted(server.aside)} are set aside"


def _names(jobs: Iterable[Job]) -> str:
    return ", ".join(job.spec.id for job in jobs)


def _name(job: Job) -> str:
    return f"job {job.spec.id} ({job.state})"
