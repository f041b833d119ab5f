"""The life of a stage job, as one literal table. ``Job.become`` in ``scheduler.state`` is the only user."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    WAITING = "waiting"
    """For its inputs, then in its queue."""
    FETCHING = "fetching"
    """Committed to a server, inputs on their way (the server may also still compute the previous job)."""
    READY = "ready"
    """Inputs on the server's device, waiting for it."""
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    """Its outputs are retained by the server that computed them."""
    CANCELLING = "cancelling"
    """The request is over; the server has not yet said that nothing is left."""
    CANCELLED = "cancelled"
    FAILED = "failed"


_S = JobState

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _S.WAITING: frozenset({_S.FETCHING, _S.CANCELLED, _S.FAILED}),
    _S.FETCHING: frozenset({_S.READY, _S.RUNNING, _S.DONE, _S.WAITING, _S.CANCELLING, _S.CANCELLED, _S.FAILED}),
    _S.READY: frozenset({_S.RUNNING, _S.DONE, _S.WAITING, _S.CANCELLING, _S.CANCELLED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.PAUSED, _S.DONE, _S.WAITING, _S.CANCELLING, _S.CANCELLED, _S.FAILED}),
    _S.PAUSED: frozenset({_S.RUNNING, _S.DONE, _S.WAITING, _S.CANCELLING, _S.CANCELLED, _S.FAILED}),
    # An output that died with its holder is made again.
    _S.DONE: frozenset({_S.WAITING, _S.CANCELLED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.CANCELLED: frozenset(),
    _S.FAILED: frozenset(),
}

COMMITTED = frozenset({_S.FETCHING, _S.READY, _S.RUNNING, _S.PAUSED})
"""States in which an attempt of the job occupies a server."""
