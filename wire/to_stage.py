"""Control messages that the gateway sends to a stage server. New fields go last, with defaults."""

from __future__ import annotations

import msgspec

from wire.bounded import KeepSeconds
from wire.params import ImageParams
from wire.types import Epoch, Handle, Role, ServerId


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """Base of the tagged union ``ToStage``."""


class Welcome(Message, frozen=True, kw_only=True):
    """The answer to ``Hello``. A server that served another gateway drops that one's outputs and work first."""

    gateway: str
    """Incarnation."""
    heartbeat_seconds: float
    liveness_seconds: float
    """Silence after which either side counts the other as lost."""


class Fine(Message, frozen=True, kw_only=True):
    """The answer to an ``Ask``: as things stand, a ``Hello`` would be welcome."""

    gateway: str
    """Incarnation."""


class Refused(Message, frozen=True, kw_only=True):
    """The answer to a ``Hello`` that cannot be served, or to an ``Ask``; the server exits with this message."""

    code: str
    message: str


class SayHello(Message, frozen=True, kw_only=True):
    """The gateway does not know this connection."""


class HeartbeatAck(Message, frozen=True, kw_only=True):
    sequence: int


class InputRef(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where one input lies."""

    handle: Handle
    endpoint: str
    nbytes: int = 0
    public_key: str = ""
    """CURVE public key (Z85) of the holder; empty without encryption."""


class Member(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One job of a batch; most batches have one."""

    epoch: Epoch
    params: ImageParams
    inputs: tuple[InputRef, ...] = ()
    traceparent: str = ""
    """W3C trace context of the stage's span."""
    images: dict[str, InputRef] = {}
    """Uploaded pictures held by the gateway: ``image``, ``mask_image``, …"""
    request: str = ""
    """Id of the request, as the gateway's log and its client know it."""


class Run(Message, frozen=True, kw_only=True):
    """Fetch the inputs, wait for the device, compute, publish."""

    role: Role
    members: tuple[Member, ...]
    remaining_seconds: float
    """Until the deadline, counted from receipt."""
    preempt: bool = False
    """Take the device at the end of the running attempt's step instead of waiting for its end."""
    preview: bool = False
    keep_seconds: KeepSeconds = 0.0
    """Once computed, let only preempting jobs have the device for so long: the request's next one is about to come."""


class Cancel(Message, frozen=True, kw_only=True):
    epochs: tuple[Epoch, ...]


class Release(Message, frozen=True, kw_only=True):
    """Drop these outputs; unknown handles are ignored."""

    handles: tuple[Handle, ...]


class AssignRoles(Message, frozen=True, kw_only=True):
    """Drain the roles that go, unload, load, warm up, answer ``RolesReady`` or ``RolesFailed``."""

    epoch: Epoch
    roles: tuple[Role, ...]


class TryPeer(Message, frozen=True, kw_only=True):
    """Find out whether ``server``'s data socket can be reached from here, and answer ``PeerTried``."""

    server: ServerId
    """Name/incarnation."""
    endpoint: str
    public_key: str = ""


class SetAside(Message, frozen=True, kw_only=True):
    """For whoever reads this server's log: it gets no work of these roles, and why; none: all is well again."""

    roles: tuple[Role, ...] = ()
    why: str = ""


class Shutdown(Message, frozen=True, kw_only=True):
    """Finish as after SIGTERM."""


ToStage = (
    Welcome
    | Fine
    | Refused
    | SayHello
    | HeartbeatAck
    | Run
    | Cancel
    | Release
    | AssignRoles
    | TryPeer
    | SetAside
    | Shutdown
)
