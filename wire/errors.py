"""Errors that cross a process boundary, and those of reading what crossed."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Why an attempt failed, as a stage server reports it."""

    INPUT_LOST = "input_lost"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    BAD_REQUEST = "bad_request"
    """The model cannot do what the parameters ask; the message is for the client."""
    ENGINE = "engine_error"
    DEADLINE = "deadline"
    DRAINING = "draining"


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
