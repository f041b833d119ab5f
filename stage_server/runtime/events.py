"""What happens to a stage server, and what it decides to do: the closed sets that ``StageCore.handle`` maps between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from wire.errors import Code
from wire.to_gateway import Output, PeerTried, Timings, ToGateway
from wire.to_stage import Member, Run, ToStage, TryPeer
from wire.types import Handle, Role

JobKey = NewType("JobKey", int)
"""Order of arrival on this server."""

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The control socket has reached somebody."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The control socket lost its peer."""


@dataclass(frozen=True, slots=True)
class Unreached:
    """Nobody takes the connection; the socket goes on trying."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Somebody answers at the gateway's address, and hangs up."""


@dataclass(frozen=True, slots=True)
class Received:
    message: ToStage


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM or SIGINT."""


@dataclass(frozen=True, slots=True)
class Tick:
    """``StageCore.next_wakeup`` has come."""


@dataclass(frozen=True, slots=True)
class InputsFetched:
    """They are in host memory, and go onto the device now."""

    job: JobKey


@dataclass(frozen=True, slots=True)
class InputsHere:
    job: JobKey


@dataclass(frozen=True, slots=True)
class DeviceTaken:
    """The job computes, for the first time or after a pause."""

    job: JobKey


@dataclass(frozen=True, slots=True)
class DeviceYielded:
    """The job waits between two steps while a more urgent one computes."""

    job: JobKey
    step: int


@dataclass(frozen=True, slots=True)
class Stepped:
    job: JobKey
    step: int
    steps: int
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Previewed:
    """An intermediate picture lies in the store, ready to be decoded."""

    job: JobKey
    index: int
    step: int
    steps: int
    output: Output


@dataclass(frozen=True, slots=True)
class Computed:
    """The device is free again; the outputs are on their way into the store."""

    job: JobKey


@dataclass(frozen=True, slots=True)
class Published:
    """The job's thread ends; its outputs lie in the store."""

    job: JobKey
    outputs: tuple[Output, ...]
    timings: Timings
    prompt_tokens: int = 0
    """0: not known."""
    prompt_dropped: int = 0
    """Of these, how many were not read."""
    prompt: str = ""
    """Of an enhancer job, what it made of it."""


@dataclass(frozen=True, slots=True)
class Broke:
    """The job's thread ends and has left nothing in the store."""

    job: JobKey
    code: Code
    message: str
    retryable: bool
    lost: tuple[Handle, ...] = ()
    unreached: tuple[Handle, ...] = ()


@dataclass(frozen=True, slots=True)
class Stopped:
    """The job's thread ends because it was told to, and has left nothing in the store."""

    job: JobKey


@dataclass(frozen=True, slots=True)
class Surrendered:
    """The job's thread ends, as it was told to ``Surrender``."""

    job: JobKey
    step: int
    output: Output | None
    """What to go on from; None: nothing was begun, or there was no room for it."""
    timings: Timings


@dataclass(frozen=True, slots=True)
class RolesBegun:
    """A change of roles, or reading ahead for one, has the device."""


@dataclass(frozen=True, slots=True)
class RolesRested:
    """It has left the device, to come back perhaps."""


@dataclass(frozen=True, slots=True)
class RolesLoaded:
    roles: frozenset[Role]
    seconds: float
    """Without waiting for the device."""
    from_host: bool = False
    """No weights had to be read from files."""
    stopped: float = 0.0
    """Seconds for which the device was stopped to swap the roles."""
    forms: Mapping[Role, bytes] = field(default_factory=dict)
    """``Hello.forms``."""


@dataclass(frozen=True, slots=True)
class RolesBroke:
    """The former roles are resident again, or as many as could be had back."""

    message: str
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class ReadAheadOver:
    """Weights lie in host memory now, as far as there was room and nothing failed."""

    fault: str = ""


@dataclass(frozen=True, slots=True)
class RoomFreed:
    """Outputs have left the store."""


@dataclass(frozen=True, slots=True)
class Tried:
    """The outcome of ``Try``."""

    result: PeerTried


JobEvent = (
    InputsFetched
    | InputsHere
    | DeviceTaken
    | DeviceYielded
    | Stepped
    | Previewed
    | Computed
    | Published
    | Broke
    | Stopped
    | Surrendered
)
Event = (
    Connected
    | Disconnected
    | Unreached
    | Denied
    | Received
    | Terminate
    | Tick
    | JobEvent
    | RolesBegun
    | RolesRested
    | RolesLoaded
    | RolesBroke
    | ReadAheadOver
    | RoomFreed
    | Tried
)

# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    message: ToGateway


@dataclass(frozen=True, slots=True)
class Begin:
    """Start the job's thread."""

    job: JobKey
    run: Run
    """Of one member."""
    deadline: float

    @property
    def member(self) -> Member:
        return self.run.members[0]


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell the job's thread to end; one of its last events will come."""

    job: JobKey


@dataclass(frozen=True, slots=True)
class Surrender:
    """Tell the job's thread to end at its next step and leave what another server needs; ``Surrendered``, or its end,
    will come."""

    job: JobKey


@dataclass(frozen=True, slots=True)
class Drop:
    """Take these outputs out of the store."""

    handles: tuple[Handle, ...]


@dataclass(frozen=True, slots=True)
class LoadRoles:
    """Make these roles resident beside the work of those that stay; answered by ``RolesLoaded`` or ``RolesBroke``."""

    roles: frozenset[Role]
    forms: Mapping[Role, bytes] = field(default_factory=dict)
    """``AssignRoles.forms``."""


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Bring these roles into host memory; answered by ``ReadAheadOver``."""

    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Close the control socket with all that waits in it, and open one to ``endpoint`` after ``delay`` seconds."""

    delay: float
    endpoint: str
    farewell: bool = False
    """What was sent before is delivered first, behind the new connection's back."""


@dataclass(frozen=True, slots=True)
class Inform:
    text: str


@dataclass(frozen=True, slots=True)
class Warn:
    text: str
    dial: str = ""
    """An address; what happens there now completes the text."""


@dataclass(frozen=True, slots=True)
class Try:
    """Find out whether ``peer`` can be reached; answered by ``Tried``."""

    peer: TryPeer


@dataclass(frozen=True, slots=True)
class Exit:
    code: int
    message: str
    hands_over: bool = False
    """What was sent before is delivered first, as it is with ``code`` 0."""


Effect = Send | Begin | Stop | Surrender | Drop | LoadRoles | ReadAhead | Reconnect | Inform | Warn | Try | Exit
