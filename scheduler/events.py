"""What may happen: the closed set of inputs of ``Scheduler.handle``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.roles.solver import Plan
from scheduler.spec import Output, RequestSpec, ServerSpec, Timings
from wire.types import Epoch, Handle, JobId, RequestId, Role, ServerId

# --- requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestArrived:
    request: RequestSpec


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The client is gone."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class ResultTaken:
    """The gateway has the picture of this final job."""

    job: JobId


@dataclass(frozen=True, slots=True)
class ResultLost:
    """The gateway could not fetch the picture."""

    job: JobId
    handle: Handle
    unreached: bool = False
    """Its holder gave no answer, rather than another one."""


# --- servers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerJoined:
    server: ServerSpec
    limits: Mapping[Role, int]
    """Cumulative limits of batches per role, counted from now (``wire.to_gateway.Grant``)."""
    running: tuple[Epoch, ...] = ()
    holds: tuple[Handle, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerLost:
    server: ServerId
    why: str


@dataclass(frozen=True, slots=True)
class ServerLeaving:
    """It takes no new work."""

    server: ServerId


@dataclass(frozen=True, slots=True)
class LimitsRaised:
    server: ServerId
    limits: Mapping[Role, int]


@dataclass(frozen=True, slots=True)
class RolesReady:
    server: ServerId
    epoch: Epoch
    roles: frozenset[Role]
    load_seconds: float


@dataclass(frozen=True, slots=True)
class RolesFailed:
    server: ServerId
    epoch: Epoch
    roles: frozenset[Role]
    why: str


@dataclass(frozen=True, slots=True)
class ServerPinned:
    """An operator fixes (or frees) a server's roles."""

    server: ServerId
    pinned: bool


@dataclass(frozen=True, slots=True)
class RolesOrdered:
    """An operator gives a server its roles."""

    server: ServerId
    roles: frozenset[Role]


# --- attempts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobFetched:
    server: ServerId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class JobStarted:
    """Also after a pause."""

    server: ServerId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class JobPaused:
    server: ServerId
    epoch: Epoch
    step: int


@dataclass(frozen=True, slots=True)
class JobProgressed:
    server: ServerId
    epoch: Epoch
    step: int
    steps: int
    step_seconds: float


@dataclass(frozen=True, slots=True)
class JobPreviewed:
    """A running dit job has an intermediate picture ready to be decoded."""

    server: ServerId
    epoch: Epoch
    index: int
    """In ``JobSpec.previews``."""
    output: Output


@dataclass(frozen=True, slots=True)
class JobDone:
    server: ServerId
    epoch: Epoch
    outputs: tuple[Output, ...]
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class JobFailed:
    server: ServerId
    epoch: Epoch
    code: str
    message: str
    retryable: bool
    lost_inputs: tuple[Handle, ...] = ()
    unreached: tuple[Handle, ...] = ()
    """Those of them whose holder could not be reached from the server; the others it did not have."""


@dataclass(frozen=True, slots=True)
class JobCancelled:
    server: ServerId
    epoch: Epoch


# --- trials -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerReached:
    """An answer to ``TryPeer``."""

    fetcher: ServerId
    """``scheduler.reach.GATEWAY`` for the gateway itself."""
    holder: ServerId


@dataclass(frozen=True, slots=True)
class PeerUnreached:
    """An answer to ``TryPeer``."""

    fetcher: ServerId
    holder: ServerId
    detail: str
    """The address, and what happened there."""


# --- time and plans ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has reached ``Scheduler.next_wakeup``."""


@dataclass(frozen=True, slots=True)
class PlanReady:
    """The role solver, run off the event loop on a ``SolvePlan``, has an answer; None where no plan is feasible."""

    plan: Plan | None


Event = (
    RequestArrived
    | RequestCancelled
    | ResultTaken
    | ResultLost
    | ServerJoined
    | ServerLost
    | ServerLeaving
    | LimitsRaised
    | RolesReady
    | RolesFailed
    | ServerPinned
    | RolesOrdered
    | JobFetched
    | JobStarted
    | JobPaused
    | JobProgressed
    | JobPreviewed
    | JobDone
    | JobFailed
    | JobCancelled
    | PeerReached
    | PeerUnreached
    | Tick
    | PlanReady
)
