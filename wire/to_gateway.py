"""Control messages that a stage server sends to the gateway. New fields go last, with defaults."""

from __future__ import annotations

import msgspec

from wire.params import ModelInfo
from wire.types import Epoch, Handle, Role


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """Base of the tagged union ``ToGateway``."""


class RoleInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What holding one role costs this server."""

    weight_bytes: int = 0
    activation_bytes: int = 0
    load_seconds: float = 0.0
    """0: not measured yet."""


class Hello(Message, frozen=True, kw_only=True):
    """First message of every connection, and the answer to ``SayHello``."""

    protocol: tuple[int, int]
    """Major, minor. A gateway refuses another major."""
    name: str
    incarnation: str
    """Random per process."""
    model: ModelInfo
    device_class: str
    """Servers of one class and precision share a cost model, for example ``NVIDIA H100`` or ``cpu-1``."""
    memory_bytes: int
    capable: dict[Role, RoleInfo]
    """Roles that it may be assigned; with ``pinned`` exactly the roles it holds."""
    roles: tuple[Role, ...]
    """Roles that it holds now, warm."""
    data_endpoint: str
    """Where other processes reach its data socket, for example ``tcp://10.0.0.7:5601``."""
    pinned: bool = False
    engine: str = "diffusers"
    """``diffusers`` or ``emulated``."""
    public_key: str = ""
    """CURVE public key (Z85) of the data socket; empty without encryption."""
    gateway: str = ""
    """Incarnation of the gateway whose work it still holds; empty when none."""
    running: tuple[Epoch, ...] = ()
    """Attempts that it has not finished."""
    holds: tuple[Handle, ...] = ()
    """Outputs in its store."""
    limits: dict[Role, int] = {}
    """See ``Grant``."""


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sent every ``Welcome.heartbeat_seconds`` by the control loop: proof of life."""

    sequence: int
    store_bytes: int = 0
    store_capacity: int = 0
    device_memory_bytes: int = 0
    """In use."""


class Grant(Message, frozen=True, kw_only=True):
    """Flow control by cumulative limits, so that nothing races: the gateway may send ``Run`` members for a role as
    long as the number sent since ``Hello`` is below the limit. A full store simply stops raising it."""

    limits: dict[Role, int]


class Fetched(Message, frozen=True, kw_only=True):
    """All inputs of an attempt are on the device: the holders of its inputs may die now."""

    epoch: Epoch


class Started(Message, frozen=True, kw_only=True):
    epoch: Epoch


class Paused(Message, frozen=True, kw_only=True):
    """The attempt gave the device to a more urgent one; ``Started`` follows when it resumes."""

    epoch: Epoch
    step: int


class Progress(Message, frozen=True, kw_only=True):
    """At most twice a second per attempt."""

    epoch: Epoch
    step: int
    steps: int
    step_seconds: float
    """Mean time of a step since the last report."""


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One retained output. ``port`` is the role that reads it (``dit``, ``decoder``) or ``image`` for the client."""

    port: str
    handle: Handle
    nbytes: int


class Timings(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Seconds spent by one attempt on its server."""

    wait: float = 0.0
    """For the device, inputs present."""
    fetch: float = 0.0
    compute: float = 0.0
    publish: float = 0.0
    paused: float = 0.0
    steps: int = 0
    batch: int = 1
    """Members of the batch it ran in; ``compute`` is the whole batch's."""
    peak_bytes: int = 0


class StageDone(Message, frozen=True, kw_only=True):
    epoch: Epoch
    outputs: tuple[Output, ...]
    timings: Timings


class StageFailed(Message, frozen=True, kw_only=True):
    epoch: Epoch
    code: str
    """``wire.errors.Code``."""
    message: str
    retryable: bool
    lost_inputs: tuple[Handle, ...] = ()
    """Inputs that could not be fetched: their producers run again."""


class StageCancelled(Message, frozen=True, kw_only=True):
    """Nothing of the attempt is left on the server."""

    epoch: Epoch


class RolesReady(Message, frozen=True, kw_only=True):
    epoch: Epoch
    roles: tuple[Role, ...]
    load_seconds: float
    unload_seconds: float = 0.0


class RolesFailed(Message, frozen=True, kw_only=True):
    """The old roles were restored."""

    epoch: Epoch
    roles: tuple[Role, ...]
    message: str


class Leaving(Message, frozen=True, kw_only=True):
    """SIGTERM: no new work please. The server stays until its work is done and its outputs are released or moved."""


class Goodbye(Message, frozen=True, kw_only=True):
    """Last message: the socket closes now."""


ToGateway = (
    Hello
    | Heartbeat
    | Grant
    | Fetched
    | Started
    | Paused
    | Progress
    | StageDone
    | StageFailed
    | StageCancelled
    | RolesReady
    | RolesFailed
    | Leaving
    | Goodbye
)
