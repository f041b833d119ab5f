"""``stream: true``: server-sent events while the pictures are made.

What is wrong before the request is admitted is an ordinary answer with its own status; afterwards it is an event. The
framing keeps to what every OpenAI client reads: an ``event`` line with its ``data``, comments, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass

import msgspec
import pybase64
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.disconnect import while_connected
from gateway.api.errors import ApiError, from_service, internal_error
from gateway.api.generation import Generation
from gateway.api.metadata import Mode, with_metadata
from gateway.api.usage import event_usage
from gateway.service.interfaces import (
    Admitted,
    Finished,
    Listener,
    News,
    Partial,
    Place,
    Progress,
    Ready,
    ServiceError,
)

KEEP_ALIVE_SECONDS = 15.0
"""Of silence until a comment; proxies give connections up that say nothing for a minute."""

KEEP_ALIVE = b": keep-alive\n\n"

PLACE_SECONDS = 1.0
"""Of silence until a request that waits is told its place in the queue."""

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""nginx would hold events back until its buffer is full."""

log = logging.getLogger(__name__)

Work = Callable[[Listener], Coroutine[object, object, Finished]]

WhereIs = Callable[[], Place | None]
"""The place of the stream's request; None unless it is under way."""


@dataclass(frozen=True, slots=True)
class Events:
    """A request's news as bytes."""

    generation: Generation
    metadata: Mode = "none"
    """What finished pictures say of themselves."""

    def frames(self, news: News) -> Iterable[bytes]:
        match news:
            case Admitted(predicted_seconds=seconds):
                yield f": admitted, predicted {seconds:.2f} s\n\n".encode()
            case Progress(image, step, steps):
                yield f": image {image} step {step}/{steps}\n\n".encode()
            case Partial(image, index, data):
                yield self._event("partial_image", image, data, partial_image_index=index)
            case Ready(image, data, prompt):
                more: dict[str, object] = {"seed": self.generation.images[image].seed}
                if prompt.dropped:
                    more["prompt_truncated"] = prompt.dropped
                more["usage"] = event_usage(self.generation, prompt)
                if prompt.revised:
                    more["revised_prompt"] = prompt.revised
                data = with_metadata(data, self.generation, image, self.metadata, prompt.revised)
                yield self._event("completed", image, data, **more)

    def place(self, place: Place) -> bytes:
        return f": waiting, {place.ahead} ahead, about {place.seconds_left:.1f} s left\n\n".encode()

    def error(self, error: ApiError) -> bytes:
        """Nested, as clients raise it; a flat one would pass for an event."""
        return _frame("error", msgspec.json.encode({"error": error.envelope()}))

    def _event(self, what: str, image: int, data: bytes, **more: object) -> bytes:
        generation = self.generation
        fields: dict[str, object] = {
            "type": f"{self.generation.kind}.{what}",
            "created_at": int(time.time()),
            "size": str(generation.final_size if what == "completed" else generation.size),
            "quality": generation.quality or "auto",
            "background": "opaque",
            "output_format": generation.output_format,
            **more,
        }
        if len(generation.images) > 1:
            fields["image_index"] = image
        if what == "completed" and generation.safety_identifier:
            fields["safety_identifier"] = generation.safety_identifier
        head = msgspec.json.encode(fields).removesuffix(b"}")
        return _frame(f"{self.generation.kind}.{what}", head + b',"b64_json":"' + pybase64.b64encode(data) + b'"}')


class EventStream(Response):
    """Runs ``work`` when it is sent. The client's leaving cancels it."""

    media_type = "text/event-stream"

    def __init__(self, work: Work, events: Events, headers: dict[str, str], where_is: WhereIs) -> None:
        super().__init__(headers=HEADERS | headers)
        del self.headers["content-length"]
        self._work = work
        self._events = events
        self._where_is = where_is
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what ``work`` raises before the request is admitted."""
        try:
            await while_connected(receive, self._tell(scope, send))
        except ClientDisconnect:
            if not self._has_started:
                raise
            scope["state"]["error_code"] = "client_disconnect"

    async def _tell(self, scope: Scope, send: Send) -> None:
        news: asyncio.Queue[News | None] = asyncio.Queue()
        working = asyncio.create_task(self._work(news.put_nowait), name="generate")
        working.add_done_callback(lambda _: news.put_nowait(None))
        try:
            async for frame in self._frames(news):
                await self._send(send, frame)
            await self._end(working, scope, send)
        finally:
            # Nothing is awaited after the last event: the connection may be closed then, as nobody leaves by that.
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    async def _frames(self, news: asyncio.Queue[News | None]) -> AsyncIterator[bytes]:
        silent = 0.0
        while True:
            try:
                async with asyncio.timeout(PLACE_SECONDS):
                    word = await news.get()
            except TimeoutError:
                silent += PLACE_SECONDS
                frame = self._in_silence(silent)
                if frame:
                    yield frame
                    silent = 0.0
                continue
            if word is None:
                return
            silent = 0.0
            for frame in self._events.frames(word):
                yield frame

    def _in_silence(self, seconds: float) -> bytes:
        """What there is to say after so many seconds without news."""
        if not self._has_started:
            return b""  # a comment would be the answer's first byte, and a refusal could have no status of its own
        place = self._where_is()
        if place is not None and place.ahead is not None:
            return self._events.place(place)
        return KEEP_ALIVE if seconds >= KEEP_ALIVE_SECONDS else b""

    async def _end(self, working: asyncio.Task[Finished], scope: Scope, send: Send) -> None:
        error = working.exception()
        if error is not None:
            if not self._has_started or not isinstance(error, Exception):
                raise error
            await self._send(send, self._events.error(_told(error, scope)))
        elif not self._has_started:
            await self._send(send, b"")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, frame: bytes) -> None:
        if not self._has_started:
            self._has_started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": frame, "more_body": True})


def _told(error: Exception, scope: Scope) -> ApiError:
    """The same words as in an ordinary answer."""
    request_id = scope["state"]["request_id"]
    if isinstance(error, ServiceError):
        log.warning("%s: %s: %s", request_id, type(error).__name__, error)
        told = from_service(error)
    elif isinstance(error, ApiError):
        told = error
    else:
        log.error("%s: unexpected error", request_id, exc_info=error)
        told = internal_error()
    scope["state"]["error_code"] = told.code
    return told


def _frame(event: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
