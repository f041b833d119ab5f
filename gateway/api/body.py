"""JSON bodies: those of requests, bounded in bytes, announced or not, and in time; those of short answers."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import ApiError
from gateway.api.parsing import Body, parse
from gateway.settings import Settings


async def read_json(request: Request, schema: type[Body], settings: Settings) -> Body:
    """The request's JSON object as ``schema``. Raises ``ApiError``, or ``ClientDisconnect`` while reading."""
    check_media_type(request, "application/json")
    check_announced(request, settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            raw = await _read(request, settings.max_body_bytes)
    except TimeoutError:
        raise ApiError(
            f"The body did not arrive within {settings.body_timeout_seconds:g} s.", code="request_timeout", status=408
        ) from None
    if not raw:
        raise ApiError("The body is empty; send a JSON object.", code="invalid_json")
    return parse(schema, raw)


def json_answer(content: object, status_code: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code, media_type="application/json")


def check_media_type(request: Request, wanted: str) -> None:
    """Raises ``ApiError`` 415. JSON must say that it is: browsers send other types across origins without asking."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if media_type != wanted:
        raise _unsupported(f"Content-Type must be {wanted}, not '{media_type}'.")
    if encoding != "identity":
        raise _unsupported(f"Content-Encoding '{encoding}' is not supported; send the body as it is.")


def check_announced(request: Request, max_bytes: int) -> None:
    """Refuse a body that is too large before any of it is read. Raises ``ApiError`` 413."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise too_large(max_bytes)


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    nbytes = 0
    async for chunk in request.stream():
        nbytes += len(chunk)
        if nbytes > max_bytes:
            raise too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def too_large(max_bytes: int) -> ApiError:
    return ApiError(f"Request body too large: at most {max_bytes} bytes.", code="request_too_large", status=413)


def _unsupported(message: str) -> ApiError:
    return ApiError(message, code="unsupported_media_type", status=415)
