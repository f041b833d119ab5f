"""How the scheduler's refusals and failures read at the service seam. Pure."""

from __future__ import annotations

from gateway.service.interfaces import (
    DeadlineExceeded,
    FaultyModel,
    GenerationFailed,
    NoCapacity,
    OutOfDeviceMemory,
    ServiceError,
    UnsupportedRequest,
)
from scheduler.actions import Fail, Reject
from wire.errors import Code

RETRY_SECONDS = 10.0
"""When no server held a role: how long a replacement may take."""


def rejected(action: Reject) -> NoCapacity:
    return NoCapacity(
        f"The request is not admitted: {action.reason}.",
        retry_after_seconds=action.retry_after_seconds,
        predicted_wait_seconds=action.predicted_seconds,
    )


def failed(action: Fail) -> ServiceError:
    match action.code:
        case "no_capacity":
            return NoCapacity(f"{_sentence(action.message)}.", retry_after_seconds=RETRY_SECONDS)
        case Code.DEADLINE:
            return DeadlineExceeded(f"{_sentence(action.message)}.")
        case Code.BAD_REQUEST:
            return UnsupportedRequest(action.message)
        case Code.OUT_OF_MEMORY | Code.OUTPUT_TOO_LARGE:
            return OutOfDeviceMemory(action.message)
        case Code.NON_FINITE | Code.WRONG_SIZE:
            return FaultyModel(f"The image could not be generated: {action.message}.")
        case Code.STUCK:
            return GenerationFailed(f"{_sentence(action.message)}.")
        case _:
            return GenerationFailed(f"{action.code}: {action.message}")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
