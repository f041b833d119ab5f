"""Server-sent events, and what the images API says in them. Bytes in, news out; no sockets."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PREDICTED = re.compile(r"admitted, predicted ([0-9.]+) s")
WAITING = re.compile(r"waiting, (\d+) ahead, about ([0-9.]+) s left")
STEP = re.compile(r"image (\d+) step (\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request is in the queue."""

    predicted_seconds: float
    """From its arrival to its last picture."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """No server has begun, or gone on with, it yet."""

    ahead: int
    """Requests that go before it."""
    seconds_left: float
    """Predicted, until its last picture."""


@dataclass(frozen=True, slots=True)
class Step:
    image: int
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Partial:
    image: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Completed:
    image: int
    data: bytes
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Stages:
    """What each stage took, in seconds; not told in streams."""

    seconds: tuple[tuple[str, float], ...]


News = Admitted | Waiting | Step | Partial | Completed | Stages


class Refused(Exception):
    """The server's own words of why there is no picture."""

    def __init__(self, message: str, code: str, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        """200 when the error came in a stream that had begun well."""
        self.retry_after_seconds = retry_after_seconds


class Malformed(Exception):
    """An answer that is none of the images API."""


class EventReader:
    """Turns the bytes of a stream into news, in whatever chunks they come."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._completed = 0

    def feed(self, chunk: bytes) -> Iterator[News]:
        """Raises ``Refused`` for an error event, ``Malformed`` for what cannot be read."""
        # Not httpx's iter_lines: it also splits at U+2028 and the like, which JSON may hold.
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = b"".join((*self._line, end)).removesuffix(b"\r")
            self._line.clear()
            yield from self._read(line)
        self._line.append(rest)

    def _read(self, line: bytes) -> Iterator[News]:
        if line.startswith(b":"):
            yield from _of_comment(line[1:].decode(errors="replace").strip())
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            data = b"\n".join(self._data)
            self._data.clear()
            if data != b"[DONE]":
                yield from self._of_event(_object(data))

    def _of_event(self, fields: dict[str, Any]) -> Iterator[News]:
        if isinstance(fields.get("error"), dict):
            raise refused(fields, status=200)
        kind = str(fields.get("type", ""))
        # Servers without image_index make pictures in order.
        match fields:
            case {"image_index": int(image)}:
                pass
            case _:
                image = self._completed
        if kind.endswith(".partial_image"):
            yield Partial(image, picture(fields))
        elif kind.endswith(".completed"):
            self._completed += 1
            yield Completed(image, picture(fields), fields.get("seed"))


def _of_comment(text: str) -> Iterator[News]:
    if found := PREDICTED.fullmatch(text):
        yield Admitted(float(found[1]))
    elif found := WAITING.fullmatch(text):
        yield Waiting(int(found[1]), float(found[2]))
    elif found := STEP.fullmatch(text):
        yield Step(*map(int, found.groups()))


def _object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise Malformed(f"an event that is no JSON: {data[:80]!r}") from error
    if not isinstance(fields, dict):
        raise Malformed(f"an event that is no JSON object: {data[:80]!r}")
    return fields


def picture(fields: dict[str, Any]) -> bytes:
    """Raises ``Malformed``."""
    try:
        return base64.b64decode(fields["b64_json"], validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise Malformed(f"no picture in b64_json ({error})") from error


def refused(fields: object, status: int, retry_after_seconds: float | None = None) -> Refused:
    """``fields`` is an error's envelope, or what stands in its place."""
    match fields:
        case {"error": {"message": message, **more}}:
            return Refused(str(message), str(more.get("code") or more.get("type") or ""), status, retry_after_seconds)
    return Refused(str(fields)[:300], "unreadable", status, retry_after_seconds)
