"""``Idempotency-Key``: requests of one caller that show the same key are one, and get the same answer.

Endpoints read and check the body, and hand the rest to ``once``. A key is the caller's own: another tenant's, or where
there are no API keys another address's, is another key.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import field
from functools import partial

import msgspec
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.api.disconnect import while_connected
from gateway.api.edit_schema import FileId, Inline, Remote, Source
from gateway.api.error_handlers import render
from gateway.api.errors import ApiError, from_service, overloaded
from gateway.api.forms import FormFile
from gateway.api.state import Api
from gateway.idempotency.run import Ended, Head, Origin, OtherRequest, Run
from gateway.service.interfaces import ServiceError
from wire.record import record

HEADER = "idempotency-key"

UNSAFE = frozenset({Origin.UNAVAILABLE, Origin.NOT_KEPT})
"""Another request with the key may be done again: the line in the log says so."""

_KEY = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")

log = logging.getLogger(__name__)

Work = Callable[[Request], Awaitable[Response]]
"""Answers the request that it is given, which may be another object than the endpoint's: its client never leaves."""


@record(frozen=True, slots=True)
class Sent:
    """What a client asks for, as far as it decides the answer. The same request sent again is equal, however its form
    is divided and wherever its fields stand."""

    what: str
    body: BaseModel
    files: tuple[Source | str | None, ...] = ()
    held: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Whatever ``files`` lie in. ``once`` sees to it that it is closed; work may do so earlier."""

    def digest(self, key: str) -> bytes:
        """Keyed, so that nobody finds a prompt in the database by trying. May have to read hundreds of megabytes."""
        digest = hmac.new(key.encode(), digestmod="sha256")
        said = self.body.model_dump(mode="json", by_alias=True, exclude_none=True)  # null says nothing
        head = msgspec.json.encode([self.what, said], order="deterministic")
        for part in (head, *map(_content, self.files)):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()


def _content(source: Source | str | None) -> bytes | memoryview:
    match source:
        case FormFile():
            return source.view()
        case Inline(url=url):
            return url
        case Remote(url=text) | FileId(file_id=text):
            return text.encode()
        case str():
            return source.encode()
        case None:
            return b""


async def once(request: Request, api: Api, tenant: str, sent: Sent, work: Work) -> Response:
    """``work`` done now, or once for all requests with this one's key. The body must have been read.

    Raises ``ApiError``, and what ``work`` raises; the response may, too, until it has begun.
    """
    shown = _shown(request)
    if shown is None:
        async with sent.held:
            return await work(request)
    is_taken = False
    try:
        key = _scoped(request, tenant, shown)
        # Files may be large; without them the way to a thread takes longer than the digest.
        digest = await asyncio.to_thread(sent.digest, shown) if sent.files else sent.digest(shown)
        run = api.once.join(key, digest)
        if run is None:
            answer, record = partial(_answer, request.scope, work), _recorder(request.scope)
            run = api.once.start(key, digest, request.state.request_id, answer, sent.held, record)
            is_taken = True
        return _Told(run, joined=not is_taken)
    except OtherRequest:
        raise _other_request() from None
    finally:
        if not is_taken:
            await sent.held.aclose()


def _recorder(scope: Scope) -> Callable[[Run], None]:
    """The work is used by the request that began it, until its end: also by a client that has left meanwhile."""
    ended = scope["state"].pop("ended", None)

    def record(run: Run) -> None:
        status, code = run.status, run.error_code or ""
        failure = from_service(run.failure) if isinstance(run.failure, ServiceError) else run.failure
        if isinstance(failure, ApiError):
            status, code = failure.status, failure.code
        elif isinstance(failure, Exception) and not isinstance(failure, Ended):
            status, code = 500, "server_error"
        if ended is not None:
            ended(status, code)

    return record


def _shown(request: Request) -> str | None:
    """Raises ``ApiError``."""
    shown = request.headers.getlist(HEADER)
    if not shown:
        return None
    if len(shown) > 1 or not _KEY.fullmatch(shown[0]):
        raise ApiError(
            "Invalid header 'Idempotency-Key': send one, of 1 to 255 printable ASCII characters, for example a UUID.",
            code="invalid_value",
        )
    return shown[0]


def _scoped(request: Request, tenant: str, shown: str) -> bytes:
    address = "" if tenant or request.client is None else request.client.host
    return hashlib.sha256(msgspec.json.encode([tenant, address, shown])).digest()


async def _answer(scope: Scope, work: Work, run: Run) -> None:
    """For all who wait, in the name of the first. Refusals that are part of the answer are sent, others raised."""
    inner = {**scope, "state": {**scope["state"]}}
    request = Request(inner, _never)
    try:
        response = await work(request)
        await response(inner, _never, run.send)
    except ServiceError as error:
        told = from_service(error)
        if told.status != 400:
            raise
        log.warning("%s: %s: %s", request.state.request_id, type(error).__name__, error)
        await render(told, inner["state"])(inner, _never, run.send)
    run.error_code = inner["state"].get("error_code")
    run.lasts_seconds = inner["state"].get("answer_lasts_seconds")


async def _never() -> Message:
    """The client of a run does not leave: ``Once`` ends it instead."""
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


class _Told(Response):
    """What a run tells one client. The client's leaving ends nothing but this."""

    def __init__(self, run: Run, *, joined: bool) -> None:
        super().__init__()
        self._run = run
        self._joined = joined
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._run.attended():
                await while_connected(receive, self._tell(scope, send))
        except ClientDisconnect:
            if not self._has_started:
                raise
            scope["state"]["error_code"] = "client_disconnect"
        except OtherRequest:
            raise _other_request() from None
        except Ended:
            raise overloaded("The work on this request was ended; send it again.", 1.0) from None
        finally:
            if self._run.origin in UNSAFE:
                scope["state"]["idempotency"] = f"{self._run.origin} for {self._run.request_id}"

    async def _tell(self, scope: Scope, send: Send) -> None:
        async for word in self._run.listen():
            if isinstance(word, Head):
                self._has_started = True
                headers = [*word.headers, *self._origin(scope)]
                await send({"type": "http.response.start", "status": word.status, "headers": headers})
            else:
                await send({"type": "http.response.body", "body": word, "more_body": True})
        if self._run.error_code is not None:
            scope["state"]["error_code"] = self._run.error_code
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _origin(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        origin = "joined" if self._joined and self._run.origin == "new" else self._run.origin.value
        headers = [(b"x-idempotency", origin.encode())]
        if self._run.request_id != scope["state"]["request_id"]:
            headers.append((b"x-original-request-id", self._run.request_id.encode()))
        return headers


def _other_request() -> ApiError:
    return ApiError(
        "This 'Idempotency-Key' was used with another request; send a new key with every new request.",
        code="idempotency_key_reused",
        status=409,
        headers={"x-should-retry": "false"},
    )
