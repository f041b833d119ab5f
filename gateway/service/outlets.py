"""What the dispatcher acts through: the side towards stage servers, as functions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from wire.record import record
from wire.to_stage import InputRef, ToStage, TryPeer
from wire.types import Handle, ServerId


@record(frozen=True, slots=True)
class Outlets:
    send: Callable[[ServerId, ToStage], None]
    fetch: Callable[[InputRef], Awaitable[bytes]]
    """A finished picture; raises ``InputLost``."""
    probe: Callable[[TryPeer], Awaitable[str]]
    """What is in the way to a server's data socket; empty if nothing is."""
    hold: Callable[[bytes], InputRef]
    """Keep an uploaded picture for stage servers; raises ``RoomTaken``."""
    drop: Callable[[Handle], None]
