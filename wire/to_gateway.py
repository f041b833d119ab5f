"""Control messages that a stage server sends to the gateway. New fields go last, with defaults."""

from __future__ import annotations

from typing import Annotated

import msgspec

from wire.bounded import (
    MAX_RELAYS,
    Address,
    BoundedHandle,
    Celsius,
    Count,
    Detail,
    Form,
    Name,
    Positive,
    Prompt,
    Seconds,
    Watts,
)
from wire.params import ModelInfo
from wire.types import Epoch, Role

Roles = Annotated[tuple[Role, ...], msgspec.Meta(max_length=len(Role))]
MAX_OUTPUTS = 16
"""Of one attempt; there are as many as there are later roles."""


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """Base of the tagged union ``ToGateway``."""


class RoleInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What holding one role costs this server."""

    weight_bytes: Count = 0
    activation_bytes: Count = 0
    load_seconds: Seconds = 0.0
    """0: not measured yet."""
    together: Positive = 1
    """Attempts that may compute at the same time where each has ``Run.share``; 1: each has the device alone."""
    warm_seconds: Seconds = 0.0
    """To load it when its weights wait in host memory; 0: not known."""
    common_bytes: dict[Name, Count] = {}
    """Of ``weight_bytes``, what roles with the same key, of whichever model, hold once together on one device."""


class Hello(Message, frozen=True, kw_only=True):
    """First message of every connection, and the answer to ``SayHello``."""

    protocol: tuple[int, int]
    """Major, minor. A gateway refuses another major."""
    name: Name
    incarnation: Name
    """Random per process."""
    model: ModelInfo
    device_class: Name
    """Servers of one class and precision share a cost model, for example ``NVIDIA H100`` or ``cpu-1``."""
    memory_bytes: Count
    capable: dict[Role, RoleInfo]
    """Roles that it may be assigned; with ``pinned`` exactly the roles it holds."""
    roles: Roles
    """Roles that it holds now, warm."""
    data_endpoint: Address
    """Where other processes reach its data socket, for example ``tcp://10.0.0.7:5601``."""
    pinned: bool = False
    engine: str = "diffusers"
    """``diffusers`` or ``emulated``."""
    public_key: Address = ""
    """CURVE public key (Z85) of the data socket; empty without encryption."""
    gateway: str = ""
    """Incarnation of the gateway whose work it still holds; empty when none."""
    running: tuple[Epoch, ...] = ()
    """Attempts that it has not finished."""
    holds: tuple[BoundedHandle, ...] = ()
    """Outputs in its store."""
    limits: dict[Role, Count] = {}
    """See ``Grant``."""
    warm: Roles = ()
    """Roles that it does not hold and whose weights wait in its host memory."""
    software: Detail = ""
    """What computes, with versions: servers of one device class and software go on with each other's denoising to the
    bit. Empty: it cannot hand a job over."""
    device: Name = ""
    """Name/incarnation of the process where it may serve several models, and introduces itself once for each: all of
    these servers share its device, and may hold no role. Empty: it is the only one."""
    joins: bool = False
    """It reads messages that come as the frames of one."""
    moves: bool = False
    """It goes to another gateway when told: ``MoveTo``."""
    pool: Name = ""
    """That it was started for; empty: for none."""
    relays: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_RELAYS)] = ()
    """Where those reach its data socket who cannot connect to ``data_endpoint``: ``relay://HOST:PORT/NAME``."""
    shares_guidance: bool = False
    """It can compute half of another server's guided steps, or have half of its own computed: ``Member.half``."""
    forms: dict[Role, Form] = {}
    """Of what the warm-ups of its roles made, for servers that hold the roles which read it: ``Fine.forms``."""


class Ask(Message, frozen=True, kw_only=True):
    """Would a ``Hello`` with these be welcome? Asked before minutes are spent on loading weights; nobody joins by it.

    Answered by ``Fine`` or ``Refused``, and by a gateway that is older than the question with ``SayHello``.
    """

    protocol: tuple[int, int]
    name: Name
    incarnation: Name
    public_key: Address = ""


class AskCell(Message, frozen=True, kw_only=True):
    """From another gateway, once a second: what does your cell look like? Answered by ``CellState``, and by a gateway
    that is older than the question with ``SayHello``."""

    name: Name
    """Of the cell that asks."""


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sent every ``Welcome.heartbeat_seconds`` by the control loop: proof of life."""

    sequence: int
    store_bytes: Count = 0
    store_capacity: Count = 0
    device_memory_bytes: Count = 0
    """In use."""
    warm: Roles = ()
    """As in ``Hello``."""
    blocked: Roles = ()
    """Roles that get no work because the store has no room for another output."""
    device_busy_seconds: Seconds | None = None
    """For which jobs or role changes have held the device since the process began.
    None, as from older servers: not known."""
    temperature_celsius: Celsius | None = None
    """Of the device; None where nothing measures it."""
    power_watts: Watts | None = None
    """That the device draws; None likewise."""


class Grant(Message, frozen=True, kw_only=True):
    """Flow control by cumulative limits, so that nothing races: the gateway may send a ``Run`` for a role as
    long as the number sent since ``Hello`` is below the limit. A full store simply stops raising it."""

    limits: dict[Role, Count]


class Fetched(Message, frozen=True, kw_only=True):
    """All inputs of an attempt are on the device: the holders of its inputs may die now."""

    epoch: Epoch


class Started(Message, frozen=True, kw_only=True):
    epoch: Epoch


class Paused(Message, frozen=True, kw_only=True):
    """The attempt gave the device to a more urgent one; ``Started`` follows when it resumes."""

    epoch: Epoch
    step: Count


class Progress(Message, frozen=True, kw_only=True):
    """At most twice a second per attempt."""

    epoch: Epoch
    step: Count
    steps: Count
    step_seconds: Seconds
    """Mean time of a step since the last report."""


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One retained output. ``port`` is the role that reads it (``dit``, ``decoder``) or ``image`` for the client."""

    port: Name
    handle: BoundedHandle
    nbytes: Count


class PreviewMade(Message, frozen=True, kw_only=True):
    """An intermediate picture of a running dit job can be decoded. It lives until ``Release``, or until the attempt
    ends without a result."""

    epoch: Epoch
    index: Count
    """Of those asked for, from 0."""
    step: Count
    steps: Count
    output: Output


class Timings(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Seconds spent by one attempt on its server."""

    wait: Seconds = 0.0
    """For the device, inputs present."""
    fetch: Seconds = 0.0
    compute: Seconds = 0.0
    publish: Seconds = 0.0
    paused: Seconds = 0.0
    steps: Count = 0
    batch: Annotated[float, msgspec.Meta(ge=1, le=128)] = 1
    """Attempts that computed together, itself among them, in the mean over the job; ``compute`` is all of that time."""
    peak_bytes: Count = 0


class StageDone(Message, frozen=True, kw_only=True):
    epoch: Epoch
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(max_length=MAX_OUTPUTS)]
    timings: Timings
    prompt_tokens: Count = 0
    """Of an encoder job: tokens of the prompt, by the model's own tokenizer; 0: not known."""
    prompt_dropped: Count = 0
    """Of these, past what the model reads."""
    prompt: Prompt = ""
    """Of an enhancer job: the prompt in its words; empty: nothing came of it, and the prompt stays as it was sent."""


class StageFailed(Message, frozen=True, kw_only=True):
    epoch: Epoch
    code: str
    """``wire.errors.Code``."""
    message: str
    retryable: bool
    lost_inputs: tuple[BoundedHandle, ...] = ()
    """Inputs that could not be fetched: their producers run again."""
    unreached: tuple[BoundedHandle, ...] = ()
    """Those of them whose holder gave no answer: the fault may be anybody's."""


class StageCancelled(Message, frozen=True, kw_only=True):
    """Nothing of the attempt is left on the server."""

    epoch: Epoch


class HandedOver(Message, frozen=True, kw_only=True):
    """The answer to ``HandOver``: the attempt is over here, and its job can go on elsewhere after ``step``."""

    epoch: Epoch
    step: Count
    """Denoising steps that are done."""
    output: Output | None = None
    """What to go on from, retained until ``Release``; None where nothing was begun: the job starts anew."""
    timings: Timings = Timings()


class RolesReady(Message, frozen=True, kw_only=True):
    epoch: Epoch
    roles: Roles
    load_seconds: Seconds
    """Without waiting for its turn at the device. The roles that stay were served meanwhile."""
    from_host: bool = False
    """All weights that are new were in host memory already: ``load_seconds`` is that of warm roles."""
    stopped_seconds: Seconds = 0.0
    """For which the device was taken from jobs to swap the roles; before that, each new role had a tiny job."""
    forms: dict[Role, Form] = {}
    """As in ``Hello``."""


class RolesFailed(Message, frozen=True, kw_only=True):
    """The old roles were restored."""

    epoch: Epoch
    roles: Roles
    message: str


class PeerTried(Message, frozen=True, kw_only=True):
    """The answer to ``TryPeer``."""

    server: Name
    detail: Detail = ""
    """The address, and what happened there; empty: it was reached."""


class Leaving(Message, frozen=True, kw_only=True):
    """SIGTERM: no new work please. The server stays until its work is done and its outputs are released."""

    within: Seconds = 0.0
    """At most so long; 0: unknown."""


class Goodbye(Message, frozen=True, kw_only=True):
    """Last message: the socket closes now."""


ToGateway = (
    Hello
    | Ask
    | AskCell
    | Heartbeat
    | Grant
    | Fetched
    | Started
    | Paused
    | Progress
    | PreviewMade
    | StageDone
    | StageFailed
    | StageCancelled
    | HandedOver
    | RolesReady
    | RolesFailed
    | PeerTried
    | Leaving
    | Goodbye
)
