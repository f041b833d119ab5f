"""One answer as it is made, told to everybody who waits for it, whenever they came.

It is told in the messages of ASGI, so that it may be any answer: JSON, a stream of events, a refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Message

Headers = list[tuple[bytes, bytes]]

STREAM = b"text/event-stream"


class OtherRequest(Exception):
    """The key was used with another request."""


class Ended(Exception):
    """The run is ended before it has an answer: its clients are gone, or the process is about to go."""


class Origin(StrEnum):
    """What clients read in ``x-idempotency``."""

    NEW = "new"
    REPLAYED = "replayed"
    """Made earlier, for another request with the key."""
    UNAVAILABLE = "unavailable"
    """Made for this request, with nobody to ask whether the key was used before."""
    NOT_KEPT = "not-kept"
    """Made for this request; later ones with the key will find nothing."""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    headers: Headers

    @property
    def is_stream(self) -> bool:
        return any(name == b"content-type" and value.startswith(STREAM) for name, value in self.headers)


@dataclass(frozen=True, slots=True)
class Answer:
    """One that is complete."""

    head: Head
    body: bytes
    request_id: str
    """Of the request that it was made for."""
    error_code: str | None = None


class Run:
    def __init__(self, digest: bytes, request_id: str) -> None:
        """``digest``: of the request that is answered."""
        self.digest = digest
        self.request_id = request_id
        self.origin = Origin.NEW
        self.error_code: str | None = None
        self.lasts_seconds: float | None = None
        """How long the answer is of use; None: as long as it is kept."""
        self.audience = 0
        """Clients that wait."""
        self.somebody_came = asyncio.Event()
        self.nobody_left = asyncio.Event()
        self.nobody_left.set()
        self._head: Head | None = None
        self._held: Head | None = None
        """Head of an answer that is told when it is complete."""
        self._told: list[bytes] = []
        self._ears: set[asyncio.Queue[Head | bytes | None]] = set()
        self.failure: BaseException | None = None
        self._is_over = False

    # --- whoever makes the answer -------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """For an ASGI application. A stream is told as it comes, anything else when ``finish`` says so: until then its
        headers may change."""
        if message["type"] == "http.response.start":
            head = Head(message["status"], list(message["headers"]))
            if head.is_stream:
                self._begin(head)
            else:
                self._held = head
        elif message.get("body"):
            self._add(message["body"])

    def complete(self) -> Answer | None:
        """What was sent, if it was an answer. Of a stream: what a client needs that comes when it is over."""
        head = self._head or self._held
        return None if head is None else Answer(head, b"".join(self._told), self.request_id, self.error_code)

    def replay(self, answer: Answer) -> None:
        self.origin = Origin.REPLAYED
        self.request_id = answer.request_id
        self.error_code = answer.error_code
        length = [] if answer.head.is_stream else [(b"content-length", str(len(answer.body)).encode())]
        self._held = Head(answer.head.status, answer.head.headers + length)
        self._told = [answer.body]

    @property
    def status(self) -> int:
        """Of the answer; 0 if none has begun."""
        head = self._head or self._held
        return 0 if head is None else head.status

    def finish(self) -> None:
        if self._head is None and self._held is not None:
            told, self._told = self._told, []
            self._begin(self._held)
            for data in told:
                self._add(data)
        self._end()

    def fail(self, failure: BaseException) -> None:
        """Everybody who waits raises ``failure``."""
        self.failure = failure
        self._end()

    def _begin(self, head: Head) -> None:
        self._head = head
        self._say(head)

    def _add(self, data: bytes) -> None:
        if self._head is None or not (self._head.is_stream and _is_passing(data)):
            self._told.append(data)
        if self._head is not None:
            self._say(data)

    def _end(self) -> None:
        self._is_over = True
        self._say(None)

    def _say(self, word: Head | bytes | None) -> None:
        for ear in self._ears:
            ear.put_nowait(word)

    # --- whoever waits for it -----------------------------------------------------------------------------------------

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Somebody waits for the answer inside the ``with`` block."""
        self.audience += 1
        self.nobody_left.clear()
        self.somebody_came.set()
        try:
            yield
        finally:
            self.audience -= 1
            if not self.audience:
                self.somebody_came.clear()
                self.nobody_left.set()

    async def listen(self) -> AsyncIterator[Head | bytes]:
        """The head and then the body, from the beginning, but for what was of use only in its moment (intermediate
        pictures, comments). Raises what the run failed with."""
        ear: asyncio.Queue[Head | bytes | None] = asyncio.Queue()
        if self._head is not None:
            ear.put_nowait(self._head)
            for data in self._told:
                ear.put_nowait(data)
        if self._is_over:
            ear.put_nowait(None)
        self._ears.add(ear)
        try:
            while (word := await ear.get()) is not None:
                yield word
        finally:
            self._ears.discard(ear)
        if self.failure is not None:
            raise self.failure


def _is_passing(data: bytes) -> bool:
    """Frames of ``gateway.api.streaming`` that a client does without who comes later."""
    return data.startswith(b":") or b".partial_image\n" in data[:64]
