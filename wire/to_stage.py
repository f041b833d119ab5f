"""Control messages that the gateway sends to a stage server. New fields go last, with defaults."""

from __future__ import annotations

import msgspec

from wire.bounded import KeepSeconds, Seconds
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
    joins: bool = False
    """The gateway reads messages that come as the frames of one: what waits for the socket may go together."""


class Fine(Message, frozen=True, kw_only=True):
    """The answer to an ``Ask``: as things stand, a ``Hello`` would be welcome."""

    gateway: str
    """Incarnation."""
    forms: dict[str, dict[Role, bytes]] = {}
    """Model key → what servers of it say in ``Hello.forms``, for the warm-ups of roles that read it."""


class Unit(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Processes of stage servers that are alike."""

    holds: dict[str, tuple[Role, ...]]
    """Model key → roles. A process holds roles of one model, or of several."""
    count: int = 1
    moves: bool = False
    """They could go to another cell now, as far as they themselves are concerned."""
    going_to: str = ""
    """Name of the cell that they were told to move to."""


class CellState(Message, frozen=True, kw_only=True):
    """The answer to ``AskCell``: the stage servers of one gateway."""

    name: str
    gateway: str
    """Incarnation."""
    draining: bool = False
    """It is about to end: nobody may be sent there."""
    ready: bool = False
    """It serves some model."""
    units: tuple[Unit, ...] = ()


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
    relays: tuple[str, ...] = ()
    """Other addresses of the holder, for those who do not reach ``endpoint``."""
    server: ServerId = ServerId("")
    """The holder's name/incarnation where there are ``relays``, so that it can be recognised."""


class Half(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Of a dit attempt whose guided steps two servers share: who has the other half of each.

    What either computed in the n-th shared step, from 1 on, lies with it under its handle and ``.n``.
    """

    handle: Handle
    """Of this server's halves."""
    partner: InputRef
    """The other one, and the handle of its halves."""
    leads: bool = False
    """This one's outputs count, and it goes on alone where the other is silent. The other one has no outputs, and
    ends when it is alone."""


class Member(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is asked for."""

    epoch: Epoch
    params: ImageParams
    inputs: tuple[InputRef, ...] = ()
    traceparent: str = ""
    """W3C trace context of the stage's span."""
    images: dict[str, InputRef] = {}
    """Uploaded pictures held by the gateway: ``image``, ``mask_image``, …"""
    request: str = ""
    """Id of the request, as the gateway's log and its client know it."""
    resume: InputRef | None = None
    """What another server handed over: go on from there instead of beginning."""
    half: Half | None = None
    """Of servers that say ``Hello.shares_guidance``."""


class Run(Message, frozen=True, kw_only=True):
    """Fetch the inputs, wait for the device, compute, publish."""

    role: Role
    members: tuple[Member, ...]
    """One. Of several, which gateways before protocol 1.2 may send, each is an attempt of its own."""
    remaining_seconds: float
    """Until the deadline, counted from receipt."""
    preempt: bool = False
    """Take the device at the end of the running attempt's step instead of waiting for its end."""
    preview: bool = False
    keep_seconds: KeepSeconds = 0.0
    """Once computed, let only preempting jobs have the device for so long: the request's next one is about to come."""
    share: bool = False
    """It may compute together with other attempts of its role that may: its result need not be that of a run alone."""
    predicted_seconds: Seconds = 0.0
    """On the device, as the gateway expects; 0: unknown. Many times that without a sign of life: it is stuck."""
    fast: bool = False
    """Its result need not be that of a run alone to the bit, whether it shares or not: compiled code may compute it."""


class Cancel(Message, frozen=True, kw_only=True):
    epochs: tuple[Epoch, ...]


class HandOver(Message, frozen=True, kw_only=True):
    """End these dit attempts at their next step and leave what another server needs to go on: ``HandedOver``.

    One that is past its last step, or over, is answered as if nobody had asked.
    """

    epochs: tuple[Epoch, ...]


class Release(Message, frozen=True, kw_only=True):
    """Drop these outputs; unknown handles are ignored."""

    handles: tuple[Handle, ...]


class AssignRoles(Message, frozen=True, kw_only=True):
    """Drain the roles that go, load and warm up those that come while the others are served, swap, answer
    ``RolesReady`` or ``RolesFailed``."""

    epoch: Epoch
    roles: tuple[Role, ...]
    forms: dict[Role, bytes] = {}
    """As in ``Fine``, of this model."""


class Preload(Message, frozen=True, kw_only=True):
    """These roles may come: read their weights into host memory, as far as there is room, beside the work that is done.

    Nothing else changes, and no answer is due: heartbeats tell which roles are warm. For servers of protocol 1.2 on.
    """

    roles: tuple[Role, ...]


class TryPeer(Message, frozen=True, kw_only=True):
    """Find out whether ``server``'s data socket can be reached from here, and answer ``PeerTried``."""

    server: ServerId
    """Name/incarnation."""
    endpoint: str
    public_key: str = ""
    relays: tuple[str, ...] = ()
    """As in ``InputRef``: one way that works is enough."""


class SetAside(Message, frozen=True, kw_only=True):
    """For whoever reads this server's log: it gets no work of these roles, and why; none: all is well again."""

    roles: tuple[Role, ...] = ()
    why: str = ""


class MoveTo(Message, frozen=True, kw_only=True):
    """Finish as for ``Shutdown``, say ``Goodbye``, and join the gateway at ``endpoint``; nothing is loaded anew.

    For servers that say ``Hello.moves``.
    """

    endpoint: str


class Shutdown(Message, frozen=True, kw_only=True):
    """Finish as after SIGTERM."""


ToStage = (
    Welcome
    | Fine
    | CellState
    | Refused
    | SayHello
    | HeartbeatAck
    | Run
    | Cancel
    | HandOver
    | Release
    | AssignRoles
    | Preload
    | TryPeer
    | SetAside
    | MoveTo
    | Shutdown
)
