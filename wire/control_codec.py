"""Control messages to bytes and back: MessagePack of tagged structs, one typed decoder per direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from wire import to_stage
from wire.errors import FrameTooLarge, MalformedFrame
from wire.to_gateway import ToGateway
from wire.to_stage import ToStage

MAX_CONTROL_BYTES = 1 << 20
"""Largest message to the gateway; also its control socket's ``ZMQ_MAXMSGSIZE``."""

MAX_TO_STAGE_BYTES = 8 << 20
"""Largest message to a stage server: a ``Run`` of 32 members whose prompts are as long as the API allows."""

MAX_FAULT = 300
"""Characters of a decoder's complaint that go into an error: it may quote the peer's bytes."""

Buffer = bytes | bytearray | memoryview
Decoded = TypeVar("Decoded")

_encoder = msgspec.msgpack.Encoder()
_to_gateway: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)
_to_stage: msgspec.msgpack.Decoder[ToStage] = msgspec.msgpack.Decoder(ToStage)


def encode(message: ToGateway | ToStage) -> bytes:
    """Raises ``FrameTooLarge`` where the receiver would."""
    frame = _encoder.encode(message)
    if len(frame) > MAX_CONTROL_BYTES:  # the smaller limit, which few come near
        limit = MAX_TO_STAGE_BYTES if isinstance(message, to_stage.Message) else MAX_CONTROL_BYTES
        check_size(frame, limit, type(message).__name__)
    return frame


def decode_to_gateway(frame: Buffer) -> ToGateway:
    """Raises ``FrameTooLarge`` or ``MalformedFrame``; fields that this version does not know are skipped."""
    return decode(_to_gateway.decode, frame, MAX_CONTROL_BYTES, "message to the gateway")


def decode_to_stage(frame: Buffer) -> ToStage:
    """Raises ``FrameTooLarge`` or ``MalformedFrame``; fields that this version does not know are skipped."""
    return decode(_to_stage.decode, frame, MAX_TO_STAGE_BYTES, "message to a stage server")


def decode(decoder: Callable[[Buffer], Decoded], frame: Buffer, limit: int, what: str) -> Decoded:
    """Decode ``frame`` of at most ``limit`` bytes; every fault becomes a ``WireError`` that names ``what``."""
    check_size(frame, limit, what)
    try:
        return decoder(frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedFrame(f"{what}: {str(error)[:MAX_FAULT]}") from error
    except RecursionError as error:
        raise MalformedFrame(f"{what}: nested too deeply") from error


def check_size(frame: Buffer, limit: int, what: str) -> None:
    size = len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes
    if size > limit:
        raise FrameTooLarge(f"{what}: {size} bytes, at most {limit} are allowed")
