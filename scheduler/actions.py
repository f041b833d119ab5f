"""What the scheduler wants done: the closed set of results of ``Scheduler.handle``."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.roles.problem import Problem
from scheduler.spec import Input
from wire.types import Epoch, Handle, JobId, RequestId, Role, ServerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    cause: int
    """Number of the event that led to it, counted from 1 since the scheduler was made."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit(Action):
    request: RequestId
    predicted_seconds: float
    """Until its last picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject(Action):
    """Nothing of the request is kept."""

    request: RequestId
    retry_after_seconds: float
    predicted_seconds: float


@dataclass(frozen=True, slots=True)
class Member:
    job: JobId
    epoch: Epoch
    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Action):
    server: ServerId
    role: Role
    members: tuple[Member, ...]
    deadline: float
    """The earliest of its members', absolute."""
    preempt: bool = False
    keep_seconds: float = 0.0
    """What was paused for it stays so for this long after its end: its request is about to go on there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Action):
    server: ServerId
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Action):
    server: ServerId
    handles: tuple[Handle, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult(Action):
    """A picture is ready; answer with ``ResultTaken`` or ``ResultLost``."""

    request: RequestId
    job: JobId
    source: Input


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Action):
    """Every picture of the request was taken."""

    request: RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail(Action):
    request: RequestId
    code: str
    """``no_capacity``, ``deadline``, ``poison`` or what the stage server reported."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignRoles(Action):
    server: ServerId
    epoch: Epoch
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True, kw_only=True)
class TryPeer(Action):
    """Find out whether ``fetcher`` reaches ``holder``; answer with ``PeerReached`` or ``PeerUnreached``."""

    fetcher: ServerId
    """``scheduler.reach.GATEWAY`` for the gateway itself."""
    holder: ServerId


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside(Action):
    """From now on, ``server`` gets no job of these roles; none: all is well again. ``reason`` says who failed where."""

    server: ServerId
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvePlan(Action):
    """Solve this off the event loop and come back with ``PlanReady``."""

    problem: Problem
