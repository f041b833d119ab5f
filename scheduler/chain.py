"""What keeps a device with the request for which a job was paused on it, through the request's further stages.

The paused job would otherwise be back on the device in between, for a step. The chain ends when nothing of the request
can go on there: it is over, its job failed or was given up, another server was faster, or the server does not serve the
stage any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.state import Attempt, Job, Server
from scheduler.transitions import JobState
from wire.types import Role

ORDER = list(Role)


def to_come(job: Job, server: Server) -> Iterable[Job]:
    """Jobs of the same request, this one included, that nobody has been given and the server could do."""
    return (
        other
        for other in job.request.jobs.values()
        if other.state is JobState.WAITING and other.spec.role in server.serving and not other.spec.optional
    )


def following(last: Attempt) -> Job | None:
    """The job with which the request goes on where this attempt was done: a runnable one of its latest stage."""
    server = last.server
    is_alone = not server.attempts  # nothing is paused there any more
    if last.job.state is not JobState.DONE or is_alone:
        return None
    able = [job for job in to_come(last.job, server) if job.is_runnable and server.may_run(job.spec.role)]
    return max(able, key=lambda job: ORDER.index(job.spec.role), default=None)
