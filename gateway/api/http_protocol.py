"""uvicorn's HTTP protocol, with an end to what may come before a request reaches the application, and a short way for
what many are told at once.

Faults of that stage are answered as all others: in OpenAI's envelope.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

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
