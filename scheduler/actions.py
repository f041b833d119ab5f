"""What the scheduler wants done: the closed set of results of ``Scheduler.handle``."""

from __future__ import annotations

from scheduler.roles.problem import Problem
from scheduler.spec import Input
from wire.record import record
from wire.types import Epoch, Handle, JobId, RequestId, Role, ServerId


@record(frozen=True, slots=True, kw_only=True)
class Action:
    cause: int
    """Number of the event that led to it, counted from 1 since the scheduler was made."""
    reason: str


@record(frozen=True, slots=True, kw_only=True)
class Admit(Action):
    request: RequestId
    predicted_seconds: float
    """Until its last picture."""


@record(frozen=True, slots=True, kw_only=True)
class Reject(Action):
    """Nothing of the request is kept."""

    request: RequestId
    retry_after_seconds: float
    predicted_seconds: float
    code: str = ""
    """``full``, ``deadline``, or what another policy calls its reason."""


@record(frozen=True, slots=True, kw_only=True)
class Run(Action):
    server: ServerId
    role: Role
    job: JobId
    epoch: Epoch
    inputs: tuple[Input, ...]
    deadline: float
    """Absolute."""
    preempt: bool = False
    keep_seconds: float = 0.0
    """What was paused for it stays so for this long after its end: its request is about to go on there."""
    share: bool = False
    """Others of its kind that may share, too, compute together with it."""
    predicted_seconds: float = 0.0
    """On the device, alone."""
    resume: Input | None = None
    """What another server handed over."""
    partner: ServerId = ServerId("")
    """Who computes half of its guided steps, and gets a ``Help``; empty: nobody."""


@record(frozen=True, slots=True, kw_only=True)
class Help(Action):
    """Compute half of the guided steps of an attempt on another server. Nothing comes of it here."""

    server: ServerId
    epoch: Epoch
    partner: ServerId
    """Whose attempt it is, …"""
    leader: Epoch
    """… and the attempt."""
    job: JobId
    inputs: tuple[Input, ...]
    deadline: float
    predicted_seconds: float


@record(frozen=True, slots=True, kw_only=True)
class Cancel(Action):
    server: ServerId
    epochs: tuple[Epoch, ...]


@record(frozen=True, slots=True, kw_only=True)
class HandOver(Action):
    """End these dit attempts at their next step, so that their jobs go on elsewhere."""

    server: ServerId
    epochs: tuple[Epoch, ...]


@record(frozen=True, slots=True, kw_only=True)
class Release(Action):
    server: ServerId
    handles: tuple[Handle, ...]


@record(frozen=True, slots=True, kw_only=True)
class FetchResult(Action):
    """A picture is ready; answer with ``ResultTaken`` or ``ResultLost``."""

    request: RequestId
    job: JobId
    source: Input


@record(frozen=True, slots=True, kw_only=True)
class Finish(Action):
    """Every picture of the request was taken."""

    request: RequestId


@record(frozen=True, slots=True, kw_only=True)
class Fail(Action):
    request: RequestId
    code: str
    """``no_capacity``, ``deadline``, ``poison`` or what the stage server reported."""
    message: str


@record(frozen=True, slots=True, kw_only=True)
class AssignRoles(Action):
    server: ServerId
    epoch: Epoch
    roles: frozenset[Role]


@record(frozen=True, slots=True, kw_only=True)
class Preload(Action):
    """These roles may come to ``server``: it should read them into host memory meanwhile. Answered by ``RolesWarm``."""

    server: ServerId
    roles: frozenset[Role]


@record(frozen=True, slots=True, kw_only=True)
class TryPeer(Action):
    """Find out whether ``fetcher`` reaches ``holder``; answer with ``PeerReached`` or ``PeerUnreached``."""

    fetcher: ServerId
    """``scheduler.reach.GATEWAY`` for the gateway itself."""
    holder: ServerId


@record(frozen=True, slots=True, kw_only=True)
class SetAside(Action):
    """From now on, ``server`` gets no job of these roles; none: all is well again. ``reason`` says who failed where."""

    server: ServerId
    roles: frozenset[Role]


@record(frozen=True, slots=True, kw_only=True)
class SolvePlan(Action):
    """Solve this off the event loop and come back with ``PlanReady``."""

    problem: Problem
