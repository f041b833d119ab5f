"""What relays, those who are reached through them and those who reach somebody say to each other, without sockets.

A relay is where two outbound connections meet: that of a holder that nobody can connect to, and that of whoever fetches
from it. It copies bytes between them and understands none; ZeroMQ and CURVE run through it from end to end. Everybody
speaks SOCKS5 to it, which ZeroMQ's sockets do by themselves, and what they want is in the name of the host that they
ask for::

    holder                               relay                                fetcher
       │ hold, then Join ──────────────▶ │                                       │
       │ ◀──────────────────────  Joined │ ◀─────────────────────── fetch-NAME   │
       │ ◀────────────────  Open(stream) │                                       │
       │ stream-STREAM ────────────────▶ │  both are told that they are connected│
       │ ◀═══════════════════════════════╪═════════════════════════════════════▶ │

The address of such a holder is ``relay://HOST:PORT/NAME``, where NAME is random: who knows it may connect.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from wire.control_codec import check_size, decode
from wire.errors import MalformedFrame

MAX_FRAME_BYTES = 1024
BEAT_SECONDS = 5.0
"""Between two signs of life of a relay; a holder answers each."""
SILENCE_SECONDS = 15.0
"""After which either takes the other for lost."""

HOLD, FETCH, ASK, STREAM = "hold", "fetch", "ask", "stream"

NAME = r"[0-9a-f]{32}"
_ADDRESS = re.compile(rf"relay://(?P<relay>.+:\d+)/(?P<name>{NAME})")
_WANTED = re.compile(rf"(?P<hold>hold)|(?P<verb>fetch|ask|stream)-(?P<name>{NAME})")

_VERSION, _CONNECT, _DOMAIN = 5, 1, 3
GREETING = bytes([_VERSION, 1, 0])
"""Of a client: it knows one way to say who it is, which is not to."""
CHOSEN = bytes([_VERSION, 0])
"""The relay agrees."""
REPLY_BYTES = 10


class Reply(IntEnum):
    """SOCKS5's codes, as a relay uses them."""

    CONNECTED = 0
    FULL = 1
    UNKNOWN = 4
    """Nobody of that name is connected to it."""
    UNOPENED = 6
    """Who has the name did not come for it."""
    NOT_UNDERSTOOD = 7


NO_RELAY = "no relay of DisagFusion answers there"

FAULTS: dict[int, str] = {
    Reply.FULL: "the relay has as many streams as it may (--max-streams)",
    Reply.UNKNOWN: "the server is not connected to the relay",
    Reply.UNOPENED: "the server is connected to the relay, and does not open a stream",
    Reply.NOT_UNDERSTOOD: "the relay does not understand what it is asked for: it is of another version",
}


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """On the connection with which a holder joins, behind two bytes that say how long it is."""


class Challenge(Message, frozen=True, kw_only=True):
    """The relay's first message."""

    protocol: tuple[int, int]
    nonce: bytes


class Join(Message, frozen=True, kw_only=True):
    """The holder's: it is to be reached by ``name``."""

    protocol: tuple[int, int]
    name: str
    proof: bytes
    """That it has the relay's key."""


class Joined(Message, frozen=True, kw_only=True):
    pass


class Rejected(Message, frozen=True, kw_only=True):
    message: str


class Open(Message, frozen=True, kw_only=True):
    """Somebody waits for the holder to come for this stream."""

    stream: str


class Beat(Message, frozen=True, kw_only=True):
    pass


ToHolder = Challenge | Joined | Rejected | Open | Beat
ToRelay = Join | Beat

_encoder = msgspec.msgpack.Encoder()
_to_holder: msgspec.msgpack.Decoder[ToHolder] = msgspec.msgpack.Decoder(ToHolder)
_to_relay: msgspec.msgpack.Decoder[ToRelay] = msgspec.msgpack.Decoder(ToRelay)


def encode(message: ToHolder | ToRelay) -> bytes:
    """With its length."""
    frame = _encoder.encode(message)
    check_size(frame, MAX_FRAME_BYTES, type(message).__name__)
    return len(frame).to_bytes(2) + frame


def length(prefix: bytes) -> int:
    """Bytes of the message that follows these two. Raises ``MalformedFrame``."""
    size = int.from_bytes(prefix)
    if not 0 < size <= MAX_FRAME_BYTES:
        raise MalformedFrame(f"a message of {size} bytes; a relay's have 1 to {MAX_FRAME_BYTES}")
    return size


def decode_to_holder(frame: bytes) -> ToHolder:
    """Raises ``WireError``."""
    return decode(_to_holder.decode, frame, MAX_FRAME_BYTES, "message of a relay")


def decode_to_relay(frame: bytes) -> ToRelay:
    """Raises ``WireError``."""
    return decode(_to_relay.decode, frame, MAX_FRAME_BYTES, "message to a relay")


def prove(key: str, nonce: bytes, name: str) -> bytes:
    return hmac.digest(key.encode(), nonce + name.encode(), "sha256")


@dataclass(frozen=True, slots=True)
class Way:
    """How a socket gets to an address behind a relay."""

    relay: str
    """HOST:PORT, for ``ZMQ_SOCKS_PROXY``."""
    name: str

    @property
    def target(self) -> str:
        """What to connect to. The relay does not look at the port."""
        return zmq_target(FETCH, self.name)


def address(relay: str, name: str) -> str:
    """``relay``: ``tcp://HOST:PORT``."""
    return f"relay://{relay.removeprefix('tcp://')}/{name}"


def way(endpoint: str) -> Way | None:
    """None where ``endpoint`` is not behind a relay."""
    found = _ADDRESS.fullmatch(endpoint)
    return None if found is None else Way(found["relay"], found["name"])


def zmq_target(verb: str, name: str) -> str:
    return f"tcp://{verb}-{name}:1"


def wanted(host: str) -> tuple[str, str] | None:
    """The verb and the name or stream that a client's ``host`` stands for; None where it is neither."""
    found = _WANTED.fullmatch(host)
    if found is None:
        return None
    return (HOLD, "") if found["hold"] else (found["verb"], found["name"])


def request(host: str) -> bytes:
    """What a client asks for after ``CHOSEN``."""
    return bytes([_VERSION, _CONNECT, 0, _DOMAIN, len(host)]) + host.encode() + (1).to_bytes(2)


def greeting_methods(head: bytes) -> int:
    """How many bytes follow the first two of a client's greeting. Raises ``MalformedFrame``."""
    if head[0] != _VERSION or not head[1]:
        raise MalformedFrame("no greeting of SOCKS5")
    return head[1]


def request_host_bytes(head: bytes) -> int:
    """How many bytes the host has in a request that begins with these five. Raises ``MalformedFrame``."""
    if tuple(head[:4]) != (_VERSION, _CONNECT, 0, _DOMAIN) or not head[4]:
        raise MalformedFrame("no request of SOCKS5 to connect to a host by its name")
    return head[4]


def reply(code: Reply) -> bytes:
    return bytes([_VERSION, code, 0, 1]) + bytes(6)


def fault_of_reply(answer: Sequence[int]) -> str:
    """Why a relay that answers so did not connect; empty where it did."""
    if len(answer) < REPLY_BYTES or answer[0] != _VERSION:
        return NO_RELAY
    return FAULTS.get(answer[1], f"the relay refuses with code {answer[1]}") if answer[1] else ""
