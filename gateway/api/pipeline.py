"""The pipeline as it works, for operators: one stream of differences, and the life of a request.

Served where an admin key is set and the page is on.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.admin import OperatorDep, operator_of
from gateway.api.body import json_answer
from gateway.api.disconnect import while_connected
from gateway.api.http_protocol import SAY, chunk
from gateway.api.state import api_of
from gateway.api.streaming import HEADERS
from gateway.pipeline_feed.feed import Feed
from gateway.service.interfaces import NothingKnown

router = APIRouter(prefix="/admin", tags=["admin"])


def _feed(request: Request) -> Feed:
    """Once the request has shown the admin key. Raises ``ApiError`` 401."""
    operator_of(request)
    feed = api_of(request).feed
    assert feed is not None  # noqa: S101 # ``create_app`` includes the router on no other condition
    return feed


async def _feed_of(request: Request) -> Feed:  # async, or FastAPI would hand it to a thread
    return _feed(request)


FeedDep = Annotated[Feed, Depends(_feed_of)]


@router.get("/pipeline", response_class=Response)
async def watch(feed: FeedDep) -> Response:
    """Server-sent events until the client leaves: first the whole state, then differences. See docs/page.md."""
    return PipelineStream(feed)


@router.get("/requests/{request_id}")
async def life(request_id: str, feed: FeedDep, operator: OperatorDep) -> Response:
    """Every attempt at the request's jobs, with its times, and every decision about it."""
    pieces = feed.life(request_id)
    if pieces is None:
        raise NothingKnown(f"Nothing is known of the request '{request_id[:100]}': it never was, or was long ago.")
    try:
        why = operator.why(request_id, "")
    except NothingKnown:  # the log of decisions is shorter where requests are many
        why = {"decisions": []}
    return json_answer({"request": request_id, "attempts": pieces, "decisions": why["decisions"]})


class PipelineStream(Response):
    media_type = "text/event-stream"

    def __init__(self, feed: Feed) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._tell(scope, send))
        except ClientDisconnect:  # how these streams end
            scope["state"]["error_code"] = "client_disconnect"

    async def _tell(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        say = (scope.get("extensions") or {}).get(SAY)
        with self._feed.reading(None if say is None else lambda frame: say(chunk(frame))) as reader:
            # A write waits while the client does not read; what comes meanwhile is kept, in bounds, by the reader.
            while words := await reader.next():
                await send({"type": "http.response.body", "body": words, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
