"""Errors that cross a process boundary, and those of reading what crossed."""

from __future__ import annotations

from enum import StrEnum

from wire.types import Handle

USER_MISTAKE = 2
"""Exit status of a process that its operator has to help: whoever starts it again changes nothing."""


class Code(StrEnum):
    """Why an attempt failed, as a stage server reports it."""

    INPUT_LOST = "input_lost"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    BAD_REQUEST = "bad_request"
    """The model cannot do what the parameters ask; the message is for the client."""
    ENGINE = "engine_error"
    NON_FINITE = "non_finite"
    """NaN or infinity in an output: of this server's making, perhaps. The message is for the client."""
    WRONG_SIZE = "wrong_size"
    """The picture has another size than was asked for; the message is for the client."""
    DEADLINE = "deadline"
    DRAINING = "draining"
    STUCK = "stuck"
    """It gave no sign of life for many times what it should take; its server ends itself."""


class WireError(Exception):
    """Something that was received cannot be used; the text names what is wrong and what would be right."""


class MalformedFrame(WireError):
    """Not decodable, truncated, inconsistent, or a checksum that does not match."""


class FrameTooLarge(WireError):
    """More bytes than the reader's limit; nothing was allocated for them."""


class ProtocolMismatch(WireError):
    """The other side speaks another major version."""


class UnsupportedValue(WireError):
    """A value of a type that may not cross between stages."""


class Loss(StrEnum):
    """Why an input could not be fetched."""

    MISSING = "missing"
    """Its holder no longer has it: produce it again."""
    UNREACHABLE = "unreachable"
    """Its holder is gone, or does not let us in."""
    STALLED = "stalled"
    """Its holder is silent."""
    REFUSED = "refused"
    """Its holder will not serve the request as we put it."""
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    """More bytes than we may hold: producing it again is useless."""
    DEADLINE = "deadline"


UNREACHED = frozenset({Loss.UNREACHABLE, Loss.STALLED, Loss.REFUSED})
"""Nothing was learnt of the input itself."""


class InputLost(Exception):
    """The output ``handle`` cannot be had from its holder."""

    def __init__(self, handle: Handle, reason: Loss, detail: str = "") -> None:
        super().__init__(f"input {handle}: {reason}" + (f": {detail}" if detail else ""))
        self.handle = handle
        self.reason = reason
