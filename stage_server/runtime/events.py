"""What happens to a stage server, and what it decides to do: the closed sets that ``StageCore.handle`` maps between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from wire.errors import Code
from wire.to_gateway import Output, PeerTried, Timings, ToGateway
from wire.to_stage import Run, ToStage, TryPeer
from wire.types import Handle, Role

JobKey = NewType("JobKey", int)
"""Order of arrival on this server: one per ``Run``, whatever the number of its members."""

# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The control socket has reached somebody."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The control socket lost its peer."""


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
    """An intermediate picture of a member lies in the store, ready to be decoded."""

    job: JobKey
    member: int
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
    """The job's thread ends; per member, its outputs lie in the store."""

    job: JobKey
    outputs: tuple[tuple[Output, ...], ...]
    timings: Timings
    prompts: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Index of a member → tokens of its prompt, and how many of them were not read."""


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
class RolesLoaded:
    roles: frozenset[Role]
    seconds: float


@dataclass(frozen=True, slots=True)
class RolesBroke:
    """The former roles are resident again."""

    message: str


@dataclass(frozen=True, slots=True)
class RoomFreed:
    """Outputs have left the store."""


@dataclass(frozen=True, slots=True)
class Tried:
    """The outcome of ``Try``."""

    result: PeerTried


JobEvent = InputsHere | DeviceTaken | DeviceYielded | Stepped | Previewed | Computed | Published | Broke | Stopped
Event = (
    Connected
    | Disconnected
    | Denied
    | Received
    | Terminate
    | Tick
    | JobEvent
    | RolesLoaded
    | RolesBroke
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
    deadline: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell the job's thread to end; one of its last events will come."""

    job: JobKey


@dataclass(frozen=True, slots=True)
class Drop:
    """Take these outputs out of the store."""

    handles: tuple[Handle, ...]


@dataclass(frozen=True, slots=True)
class LoadRoles:
    """Make these roles resident on the device thread; answered by ``RolesLoaded`` or ``RolesBroke``."""

    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Close the control socket with all that waits in it, and open another after ``delay`` seconds."""

    delay: float


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


Effect = Send | Begin | Stop | Drop | LoadRoles | Reconnect | Inform | Warn | Try | Exit
