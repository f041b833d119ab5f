"""Refuses new work where another gateway would do it sooner, and counts what is under way."""

from __future__ import annotations

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.error_handlers import render
from gateway.api.errors import ApiError, retry_after
from gateway.cells.door import Door

RETRY_SECONDS = 1

CUT_OFF = "This gateway ends, and has no more time for the request: send it again."


class AtTheDoor:
    """Middleware. Whatever is posted is work, but for cancelling some."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._door.is_draining:
            send = _closing(send)
        if scope["method"] != "POST" or scope["path"].endswith("/cancel"):
            await self.app(scope, receive, send)
            return
        refusal = self._door.refusal()
        if refusal is not None:
            await render(_error(*refusal), scope["state"])(scope, receive, send)
            return
        with self._door.passed():
            await self._passed(scope, receive, send)

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def watched(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if not self._door.is_draining:
                raise
            # The time for what is under way is over, and the server ends it: a connection that breaks says nothing.
            if not has_started:
                await render(_error(CUT_OFF, "draining"), scope["state"])(scope, receive, send)


def _error(message: str, code: str) -> ApiError:
    headers = retry_after(RETRY_SECONDS)
    return ApiError(message, code=code, status=503, kind="service_unavailable_error", headers=headers)


def _closing(send: Send) -> Send:
    """The next request of this connection might meet nobody."""

    async def close(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
        await send(message)

    return close
