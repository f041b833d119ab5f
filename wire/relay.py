"""What relays, those who are reached through them and those who reach somebody say to each other, without sockets.

A relay is where two outbound connections meet: that of a holder that nobody can connect to, and that of whoever fetches
from it. It copies bytes between them and understands none; ZeroMQ and CURVE run through it from end to end. Each
connection begins with what is wanted of it, and goes on when that is granted::

    holder                               relay                                fetcher
       │ Hold ─────────────────────────▶ │                                       │
       │ ◀───────────────────  Challenge │                                       │
       │ Join ─────────────────────────▶ │                                       │
       │ ◀─────────────────────  Granted │ ◀──────────────────────── Fetch(name) │
       │ ◀────────────────  Open(stream) │                                       │
       │ Come(stream) ─────────────────▶ │ Granted, to both                      │
       │ ◀═══════════════════════════════╪═════════════════════════════════════▶ │

Every message goes behind two bytes that say how long it is. The address of such a holder is ``relay://HOST:PORT/NAME``,
where NAME is random: who knows it may connect, as far as the holder's CURVE keys let in.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from wire.bounded import Detail
from wire.control_codec import check_size, decode
from wire.errors import MalformedFrame

MAX_FRAME_BYTES = 1280
PREFIX_BYTES = 2

BEAT_SECONDS = 5.0
"""Between two signs of life of a relay; a holder answers each."""
SILENCE_SECONDS = 15.0
"""After which either takes the other for lost."""

_NAME = r"[0-9a-f]{32}"
_ADDRESS = re.compile(rf"relay://(?P<relay>.+:\d+)/(?P<name>{_NAME})")

Name = Annotated[str, msgspec.Meta(pattern=rf"^{_NAME}$")]
Protocol = tuple[int, int]


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True):
    """Base of ``ToRelay`` and ``FromRelay``."""


class Hold(Message, frozen=True, kw_only=True):
    """Others are to reach this process through the relay."""

    protocol: Protocol


class Join(Message, frozen=True, kw_only=True):
    """The answer to ``Challenge``: by this name."""

    name: Name
    proof: Annotated[bytes, msgspec.Meta(max_length=64)]
    """That it has the relay's key."""


class Beat(Message, frozen=True, kw_only=True):
    """In both directions: proof of life."""


class Fetch(Message, frozen=True, kw_only=True):
    """A connection to the holder of this name."""

    protocol: Protocol
    name: Name


class Seek(Message, frozen=True, kw_only=True):
    """Could it be reached? Nothing follows."""

    protocol: Protocol
    name: Name


class Come(Message, frozen=True, kw_only=True):
    """The holder's connection for the stream of an ``Open``."""

    protocol: Protocol
    stream: Name


class Challenge(Message, frozen=True, kw_only=True):
    nonce: bytes


class Granted(Message, frozen=True, kw_only=True):
    """After it the bytes are those of the two ends."""


class Reason(StrEnum):
    FULL = "full"
    UNKNOWN = "unknown"
    """Nobody of that name is connected to the relay, or waits for that stream."""
    UNOPENED = "unopened"
    """Who has the name did not come."""
    KEY = "key"
    VERSION = "version"


class Denied(Message, frozen=True, kw_only=True):
    """The connection ends."""

    reason: str
    message: Detail


class Open(Message, frozen=True, kw_only=True):
    """Somebody waits for the holder to come for this stream."""

    stream: Name


Wanted = Hold | Fetch | Seek | Come
"""First message of every connection."""
ToRelay = Wanted | Join | Beat
FromRelay = Challenge | Granted | Denied | Open | Beat

_encoder = msgspec.msgpack.Encoder()
_to_relay: msgspec.msgpack.Decoder[ToRelay] = msgspec.msgpack.Decoder(ToRelay)
_from_relay: msgspec.msgpack.Decoder[FromRelay] = msgspec.msgpack.Decoder(FromRelay)


def encode(message: FromRelay | ToRelay) -> bytes:
    """With its length."""
    frame = _encoder.encode(message)
    check_size(frame, MAX_FRAME_BYTES, type(message).__name__)
    return len(frame).to_bytes(PREFIX_BYTES, "big") + frame


def length(prefix: bytes) -> int:
    """Bytes of the message that follows. Raises ``MalformedFrame``."""
    size = int.from_bytes(prefix, "big")
    if not 0 < size <= MAX_FRAME_BYTES:
        raise MalformedFrame(f"a message of {size} bytes; those of and to a relay have 1 to {MAX_FRAME_BYTES}")
    return size


def decode_to_relay(frame: bytes) -> ToRelay:
    """Raises ``WireError``."""
    return decode(_to_relay.decode, frame, MAX_FRAME_BYTES, "message to a relay")


def decode_from_relay(frame: bytes) -> FromRelay:
    """Raises ``WireError``."""
    return decode(_from_relay.decode, frame, MAX_FRAME_BYTES, "message of a relay")


def prove(key: str, nonce: bytes, name: str) -> bytes:
    return hmac.digest(key.encode(), nonce + name.encode(), "sha256")


@dataclass(frozen=True, slots=True)
class Way:
    """An address behind a relay, taken apart."""

    relay: str
    """``tcp://HOST:PORT``."""
    name: str


def address(relay: str, name: str) -> str:
    return f"relay://{relay.removeprefix('tcp://')}/{name}"


def way(endpoint: str) -> Way | None:
    """None where ``endpoint`` is not behind a relay."""
    found = _ADDRESS.fullmatch(endpoint)
    return None if found is None else Way(f"tcp://{found['relay']}", found["name"])
