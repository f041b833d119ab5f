"""What may happen: the closed set of inputs of ``Scheduler.handle``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from scheduler.roles.solver import Plan
from scheduler.spec import Output, RequestSpec, ServerSpec, Timings
from wire.record import record
from wire.types import Epoch, Handle, JobId, RequestId, Role, ServerId

# --- requests ---------------------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class RequestArrived:
    request: RequestSpec


@record(frozen=True, slots=True)
class RequestCancelled:
    """The client is gone."""

    request: RequestId


@record(frozen=True, slots=True)
class ResultTaken:
    """The gateway has the picture of this final job."""

    job: JobId


@record(frozen=True, slots=True)
class ResultLost:
    """The gateway could not fetch the picture."""

    job: JobId
    handle: Handle
    unreached: bool = False
    """Its holder gave no answer, rather than another one."""


# --- servers ----------------------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class ServerJoined:
    server: ServerSpec
    limits: Mapping[Role, int]
    """Cumulative limits of batches per role, counted from now (``wire.to_gateway.Grant``)."""
    running: tuple[Epoch, ...] = ()
    holds: tuple[Handle, ...] = ()


@record(frozen=True, slots=True)
class ServerLost:
    server: ServerId
    why: str


@record(frozen=True, slots=True)
class ServerLeaving:
    """It takes no new work."""

    server: ServerId
    within: float = 0.0
    """It leaves after so many seconds whatever is left; 0: nobody knows."""


@record(frozen=True, slots=True)
class LossAnnounced:
    """Its machine will be taken away. Until it must stop to be done in time, it works on."""

    server: ServerId
    within: float
    """Seconds."""


@record(frozen=True, slots=True)
class LimitsRaised:
    server: ServerId
    limits: Mapping[Role, int]


@record(frozen=True, slots=True)
class RolesReady:
    server: ServerId
    epoch: Epoch
    roles: frozenset[Role]
    load_seconds: float
    from_host: bool = False
    """All that was new came out of its host memory."""


@record(frozen=True, slots=True)
class RolesWarm:
    """Other roles than before wait in the server's host memory."""

    server: ServerId
    roles: frozenset[Role]


@record(frozen=True, slots=True)
class RolesFailed:
    server: ServerId
    epoch: Epoch
    roles: frozenset[Role]
    why: str


@record(frozen=True, slots=True)
class ServerPinned:
    """An operator fixes (or frees) a server's roles."""

    server: ServerId
    pinned: bool


@record(frozen=True, slots=True)
class RolesOrdered:
    """An operator gives a server its roles."""

    server: ServerId
    roles: frozenset[Role]


# --- attempts ---------------------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class JobFetched:
    server: ServerId
    epoch: Epoch


@record(frozen=True, slots=True)
class JobStarted:
    """Also after a pause."""

    server: ServerId
    epoch: Epoch


@record(frozen=True, slots=True)
class JobPaused:
    server: ServerId
    epoch: Epoch
    step: int


@record(frozen=True, slots=True)
class JobProgressed:
    server: ServerId
    epoch: Epoch
    step: int
    steps: int
    step_seconds: float


@record(frozen=True, slots=True)
class JobPreviewed:
    """A running dit job has an intermediate picture ready to be decoded."""

    server: ServerId
    epoch: Epoch
    index: int
    """In ``JobSpec.previews``."""
    output: Output


@record(frozen=True, slots=True)
class JobDone:
    server: ServerId
    epoch: Epoch
    outputs: tuple[Output, ...]
    timings: Timings = field(default_factory=Timings)


@record(frozen=True, slots=True)
class JobFailed:
    server: ServerId
    epoch: Epoch
    code: str
    message: str
    retryable: bool
    lost_inputs: tuple[Handle, ...] = ()
    unreached: tuple[Handle, ...] = ()
    """Those of them whose holder could not be reached from the server; the others it did not have."""


@record(frozen=True, slots=True)
class JobHandedOver:
    """The answer to ``HandOver``: nothing computes any more, and the job can go on elsewhere after ``step``."""

    server: ServerId
    epoch: Epoch
    step: int
    output: Output | None
    """From which it goes on; None: it starts anew."""
    timings: Timings = field(default_factory=Timings)


@record(frozen=True, slots=True)
class JobCancelled:
    server: ServerId
    epoch: Epoch


# --- trials -----------------------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class PeerReached:
    """An answer to ``TryPeer``."""

    fetcher: ServerId
    """``scheduler.reach.GATEWAY`` for the gateway itself."""
    holder: ServerId


@record(frozen=True, slots=True)
class PeerUnreached:
    """An answer to ``TryPeer``."""

    fetcher: ServerId
    holder: ServerId
    detail: str
    """The address, and what happened there."""


# --- time and plans ---------------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class Tick:
    """Time has reached ``Scheduler.next_wakeup``."""


@record(frozen=True, slots=True)
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
    | LossAnnounced
    | LimitsRaised
    | RolesReady
    | RolesWarm
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
    | JobHandedOver
    | JobCancelled
    | PeerReached
    | PeerUnreached
    | Tick
    | PlanReady
)
