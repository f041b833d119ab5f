"""Everything that can go wrong, in OpenAI's envelope: ``{"error": {"message", "type", "param", "code"}}``.

``ApiError`` is what the API's own code raises. Service errors are translated here, once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from gateway.service.interfaces import (
    DeadlineExceeded,
    FaultyModel,
    GenerationFailed,
    ModelNotFound,
    ModerationBlocked,
    ModerationUnavailable,
    NoCapacity,
    NothingKnown,
    OrderRefused,
    OutOfDeviceMemory,
    ServiceError,
    UnknownServer,
    UnsupportedRequest,
)
from gateway.storage.space import StoreFull

INVALID_REQUEST = "invalid_request_error"

STORAGE_RETRY_SECONDS = 5
MODERATION_RETRY_SECONDS = 5


class ApiError(Exception):
    """An answer that is not a picture. ``kind`` is the envelope's ``type``; bad requests are the default."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        param: str | None = None,
        status: int = 400,
        kind: str = INVALID_REQUEST,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.status = status
        self.kind = kind
        self.headers = dict(headers or {})

    def envelope(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


def overloaded(message: str, retry_after_seconds: float, predicted_wait_seconds: float | None = None) -> ApiError:
    """503. ``Retry-After`` ends at 60 seconds; the prediction goes beside it as it is."""
    headers = retry_after(retry_after_seconds)
    if predicted_wait_seconds is not None:
        headers["x-predicted-wait-ms"] = milliseconds(predicted_wait_seconds)
    return ApiError(message, code="server_is_overloaded", status=503, kind="service_unavailable_error", headers=headers)


def retry_after(retry_seconds: float) -> dict[str, str]:
    """Headers, in whole seconds from 1 to 60: what SDKs obey."""
    seconds = min(max(math.ceil(retry_seconds), 1), 60)
    return {"retry-after": str(seconds), "retry-after-ms": str(seconds * 1000)}


def model_not_found(name: str) -> ApiError:
    return ApiError(f"The model '{name}' does not exist.", code="model_not_found", param="model", status=404)


def model_not_allowed(name: str, allowed: Collection[str]) -> ApiError:
    may = ", ".join(sorted(allowed))
    return ApiError(
        f"This API key may not use the model '{name}', but only: {may}.",
        code="model_not_allowed",
        param="model",
        status=403,
    )


def storage_unavailable(message: str = "Storage is unavailable; try again later.") -> ApiError:
    """503: what should be kept, or looked up, cannot be. What is wrong with the disk, the store or the database is in
    the log."""
    return ApiError(
        message,
        code="storage_unavailable",
        status=503,
        kind="service_unavailable_error",
        headers=retry_after(STORAGE_RETRY_SECONDS),
    )


def storage_full(full: StoreFull) -> ApiError:
    """507. Asking again does not help: somebody has to delete files."""
    return ApiError(
        f"{full}; delete files and jobs that are no longer needed.",
        code="storage_full",
        status=507,
        kind="server_error",
        headers={"x-should-retry": "false"},
    )


def milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def from_service(error: ServiceError) -> ApiError:
    """Texts of failed attempts stay in the log, as they may name paths and hosts; only those made for clients pass."""
    match error:
        case ModelNotFound():
            return ApiError(str(error), code="model_not_found", param="model", status=404)
        case NoCapacity():
            return overloaded(str(error), error.retry_after_seconds, error.predicted_wait_seconds)
        case DeadlineExceeded():
            return ApiError(str(error), code="timeout", status=504, kind="server_error")
        case UnsupportedRequest():
            return ApiError(str(error), code="unsupported_value", param=error.param)
        case ModerationBlocked() | ModerationUnavailable():
            return _moderation(error)
        case OutOfDeviceMemory() | FaultyModel():
            return _hopeless(error)
        case UnknownServer() | NothingKnown() | OrderRefused():
            return _to_operator(error)
        case GenerationFailed():
            return internal_error("The image could not be generated: every attempt failed.")
        case _:
            return internal_error()


def _to_operator(error: UnknownServer | NothingKnown | OrderRefused) -> ApiError:
    match error:
        case UnknownServer():
            return ApiError(str(error), code="server_not_found", status=404)
        case NothingKnown():
            return ApiError(str(error), code="request_not_found", param="request", status=404)
        case OrderRefused():
            return ApiError(str(error), code="order_refused", status=409)


def _moderation(error: ModerationBlocked | ModerationUnavailable) -> ApiError:
    if isinstance(error, ModerationBlocked):
        return ApiError(str(error), code="moderation_blocked", kind="image_generation_user_error")
    return ApiError(
        str(error),
        code="moderation_unavailable",
        status=503,
        kind="service_unavailable_error",
        headers=retry_after(MODERATION_RETRY_SECONDS),
    )


def _hopeless(error: OutOfDeviceMemory | FaultyModel) -> ApiError:
    """500, and the same request would fail again."""
    message, code = str(error), "server_error"
    if isinstance(error, OutOfDeviceMemory):
        message, code = "No server has enough memory for this request; ask for a smaller size.", "out_of_memory"
    return ApiError(message, code=code, status=500, kind="server_error", headers={"x-should-retry": "false"})


def invalid_picture(message: str, param: str) -> ApiError:
    return ApiError(message, code="invalid_image", param=param, kind="image_generation_user_error")


def internal_error(message: str = "The server had an error while processing the request.") -> ApiError:
    return ApiError(message, code="server_error", status=500, kind="server_error")
