"""Where errors become responses: the framework's own refusals, ours, the service's, and what nobody foresaw."""

from __future__ import annotations

import logging

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.errors import (
    ApiError,
    from_service,
    internal_error,
    overloaded,
    storage_unavailable,
)
from gateway.api.parsing import from_pydantic
from gateway.database.errors import DatabaseError, level_of
from gateway.service.interfaces import ServiceError
from gateway.storage.objects import StoreError
from gateway.storage.room import RoomTaken

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""Status in logs and spans of a request whose client went away; nobody receives it."""

ROOM_RETRY_SECONDS = 5.0
"""For a client that finds the room for uploads taken."""


def from_http(request: Request, error: HTTPException) -> ApiError:
    """What routing itself refuses: an unknown path, a method that a path does not take."""
    where = f"{request.method} {request.url.path}"
    match error.status_code:
        case 404:
            message, code = f"Unknown request URL: {where}.", "unknown_url"
        case 405:
            message, code = f"Method not allowed: {where}.", "method_not_allowed"
        case _:
            message, code = error.detail, "invalid_request"
    return ApiError(message, code=code, status=error.status_code, headers=error.headers)


def render(error: ApiError, request_state: dict[str, object]) -> Response:
    """The envelope as a response; the code is left where the request's span and log line find it."""
    request_state["error_code"] = error.code
    body = msgspec.json.encode({"error": error.envelope()})
    return Response(body, status_code=error.status, headers=error.headers, media_type="application/json")


HANDLED = (
    ApiError,
    ServiceError,
    StoreError,
    DatabaseError,
    RoomTaken,
    RequestValidationError,
    HTTPException,
    ClientDisconnect,
)
"""What ``refusal`` knows. What nobody foresaw is for ``UnexpectedErrors``."""


def refusal(request: Request, error: Exception) -> Response:
    """The answer that one of ``HANDLED`` stands for, and its line in the log."""
    if isinstance(error, ClientDisconnect):
        request.state.error_code = "client_disconnect"
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return render(_told(request, error), request.scope["state"])


def _told(request: Request, error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case ServiceError():
            log.warning("%s: %s: %s", request.state.request_id, type(error).__name__, error)
            return from_service(error)
        case StoreError() | DatabaseError():
            log.log(level_of(error, logging.ERROR), "%s: %s", request.state.request_id, error)
            return storage_unavailable()
        case RoomTaken():
            log.warning("%s: %s", request.state.request_id, error)
            return overloaded("Uploads of other requests take all the room there is.", ROOM_RETRY_SECONDS)
        case RequestValidationError():
            problems = [{**problem, "loc": problem["loc"][1:]} for problem in error.errors()]  # without "query", "path"
            return from_pydantic(problems)
        case HTTPException():
            return from_http(request, error)
    raise error


def install_handlers(app: FastAPI) -> None:
    """Make every refusal of ``app`` an envelope."""

    async def answer(request: Request, error: Exception) -> Response:
        return refusal(request, error)

    for kind in HANDLED:
        app.add_exception_handler(kind, answer)


class UnexpectedErrors:
    """Last resort of a request: log the traceback under its id, tell the client nothing of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch_start)
        except Exception:  # the boundary of the process: whatever it is, one request fails and no other
            log.exception("%s: unexpected error", scope["state"]["request_id"])
            if started:
                raise
            await render(internal_error(), scope["state"])(scope, receive, send)
