"""uvicorn's HTTP protocol, with an end to what may come before a request reaches the application, and a short way for
what many are told at once.

Faults of that stage are answered as all others: in OpenAI's envelope.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.api.errors import ApiError

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers."""

HEAD_SECONDS = 20.0
"""From the connection, or the first byte of a further request, to the end of the headers."""

SAY = "disagfusion.say"
"""ASGI extension: a function that writes a part of the body which is a chunk already (``chunk``), past ``send``. It
answers False, and has done nothing, where ``send`` has to be used: before the answer began, or while the client does
not read."""


@lru_cache(maxsize=1)
def chunk(body: bytes) -> bytes:
    """As HTTP/1.1 frames it: once for all who are told the same."""
    return b"%x\r\n%b\r\n" % (len(body), body)


@lru_cache(maxsize=256)
def _named(name: bytes) -> bytes:
    """As a header's line begins. Raises ``RuntimeError``."""
    if HEADER_RE.search(name):
        raise RuntimeError(f"Invalid HTTP header name: {name!r}")
    return name.lower() + b": "


class Cycle(RequestResponseCycle):
    """Writes the heads of answers in a third of uvicorn's time: an answer has a dozen headers and more, whose names
    are checked once and whose values are checked all together."""

    async def send(self, message: Message) -> None:  # type: ignore[override] # as starlette has it typed
        begins = message["type"] == "http.response.start" and not self.response_started
        if not begins or self.disconnected or self.flow.write_paused or self.access_log:
            await super().send(message)  # type: ignore[arg-type]
            return
        self.response_started, self.waiting_for_100_continue = True, False
        self.transport.write(self._head(message["status"], [*self.default_headers, *message.get("headers", ())]))

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Also settles how the body is framed, and whether another request may come. Raises ``RuntimeError``."""
        content, closes = [STATUS_LINE[status]], False
        for name, value in headers:
            named = _named(name)
            content += (named, value, b"\r\n")
            if named == b"content-length: " and self.chunked_encoding is None:
                self.expected_content_length, self.chunked_encoding = int(value), False
            elif named == b"transfer-encoding: " and value.lower() == b"chunked":
                self.expected_content_length, self.chunked_encoding = 0, True
            elif named == b"connection: " and b"close" in map(bytes.strip, value.lower().split(b",")):
                self.keep_alive, closes = False, True
        if HEADER_VALUE_RE.search(b"".join(content[2::3])):
            raise RuntimeError("Invalid HTTP header value.")
        if not self.keep_alive and not closes:
            content.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            content.append(b"transfer-encoding: chunked\r\n")
        content.append(b"\r\n")
        return b"".join(content)


class HttpProtocol(HttpToolsProtocol):
    _head_timer: asyncio.TimerHandle | None = None
    """Set while a head is awaited."""
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_over()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_over()
        extensions: dict[str, Any] = {SAY: self._say}
        self.scope["extensions"] = extensions
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        cycle.__class__ = Cycle  # the base makes its own
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_timer is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            message = f"The request's headers have more than {MAX_HEAD_BYTES} bytes."
            self._refuse(ApiError(message, code="request_too_large", status=431))

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP. ``msg`` is uvicorn's text."""
        self._refuse(ApiError(msg, code="invalid_http"))

    def _say(self, framed: bytes) -> bool:
        cycle = self.cycle  # of the latest request: where one is pipelined behind the asking one, it has not begun
        if cycle.disconnected or cycle.response_complete or not (cycle.response_started and cycle.chunked_encoding):
            return False
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            return False
        self.transport.write(framed)
        return True

    def _await_head(self) -> None:
        self._head_is_over()
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _head_is_over(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        if self._head_bytes:
            self._refuse(ApiError("The request's headers did not arrive in time.", code="request_timeout", status=408))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        self._head_is_over()
        body = msgspec.json.encode({"error": error.envelope()})
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()
