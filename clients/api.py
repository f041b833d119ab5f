"""One request to the images API and the news of its answer."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from clients.events import Admitted, Completed, EventReader, Malformed, News, Refused, Stages, picture, refused
from clients.failover import AsyncFailover
from clients.timing import stage_seconds

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True, slots=True)
class Upload:
    name: str
    data: bytes

    @classmethod
    def read(cls, path: Path) -> Upload:
        """Raises ``OSError``."""
        return cls(path.name, path.read_bytes())

    def part(self) -> tuple[str, bytes, str]:
        suffix = Path(self.name).suffix.lower()
        return self.name, self.data, MEDIA_TYPES.get(suffix, "application/octet-stream")


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked for; with pictures, an edit of them."""

    fields: Mapping[str, object]
    images: tuple[Upload, ...] = ()
    mask: Upload | None = None

    @property
    def pictures(self) -> int:
        return int(str(self.fields.get("n") or 1))

    def with_fields(self, more: Mapping[str, object]) -> Call:
        return replace(self, fields={**self.fields, **more})

    def build(self, client: httpx.AsyncClient, url: str) -> httpx.Request:
        if not self.images:
            return client.build_request(
                "POST", f"{url}/images/generations", json=dict(self.fields), headers=key_headers()
            )
        name = "image" if len(self.images) == 1 else "image[]"
        files = [(name, upload.part()) for upload in self.images]
        files += [("mask", self.mask.part())] if self.mask else []
        # httpx writes true and false as JSON does, which is what forms of OpenAI's clients hold.
        data: Any = {key: value for key, value in self.fields.items() if value is not None}
        return client.build_request("POST", f"{url}/images/edits", data=data, files=files, headers=key_headers())


def open_client(timeout_seconds: float, urls: Sequence[str] = ()) -> httpx.AsyncClient:
    """With as many connections as there are requests. Of several base ``urls``, requests name the first."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    if len(urls) < 2:
        return httpx.AsyncClient(timeout=timeout_seconds, limits=limits)
    transport = AsyncFailover(urls, httpx.AsyncHTTPTransport(limits=limits))
    return httpx.AsyncClient(timeout=timeout_seconds, transport=transport)


def key_headers() -> dict[str, str]:
    """Of one request, not of the client, which also fetches pictures from urls that the key is no business of."""
    key = os.environ.get("OPENAI_API_KEY", "")
    return {"authorization": f"Bearer {key}"} if key else {}


async def send(client: httpx.AsyncClient, url: str, call: Call) -> AsyncGenerator[News]:
    """Until all pictures are there. Raises ``Refused``, ``Malformed`` or ``httpx.HTTPError``."""
    answer = await client.send(call.build(client, url), stream=True)
    try:
        if not answer.is_success:
            await answer.aread()
            raise refusal(answer)
        completed = 0
        async for news in _streamed(answer) if _is_stream(answer) else _whole(client, answer):
            completed += isinstance(news, Completed)
            yield news
        if completed < call.pictures:
            raise Malformed(f"the answer ended after {completed} of {call.pictures} pictures")
    finally:
        await answer.aclose()


def _is_stream(answer: httpx.Response) -> bool:
    """Servers that do not stream answer ``stream: true`` with JSON."""
    return str(answer.headers.get("content-type", "")).startswith("text/event-stream")


async def _streamed(answer: httpx.Response) -> AsyncIterator[News]:
    reader = EventReader()
    async for chunk in answer.aiter_bytes():
        for news in reader.feed(chunk):
            yield news


async def _whole(client: httpx.AsyncClient, answer: httpx.Response) -> AsyncIterator[News]:
    await answer.aread()
    predicted, first = (_number(answer, name) for name in ("x-predicted-wait-ms", "x-seed"))
    if predicted is not None:
        yield Admitted(predicted / 1000)
    for image, item in enumerate(_items(answer)):
        match item:
            case {"url": str(url)}:
                data = (await client.get(url)).raise_for_status().content
            case _:
                data = picture(item)
        yield Completed(image, data, None if first is None else first + image)
    yield Stages(tuple(stage_seconds(answer.headers.get("server-timing", ""))))


def _items(answer: httpx.Response) -> list[Any]:
    """Raises ``Malformed``."""
    try:
        fields = answer.json()
    except ValueError as error:
        raise Malformed(f"an answer that is no JSON: {answer.text[:80]!r}") from error
    match fields:
        case {"data": list(items)}:
            return items
    raise Malformed(f"an answer without data: {answer.text[:80]!r}")


def refusal(answer: httpx.Response) -> Refused:
    try:
        fields = answer.json()
    except ValueError:
        fields = answer.text or answer.reason_phrase
    return refused(fields, answer.status_code, _number(answer, "retry-after"))


def _number(answer: httpx.Response, name: str) -> int | None:
    """A header that counts something; a ``Retry-After`` may be a date as well, which image servers do not send."""
    value = str(answer.headers.get(name, ""))
    return int(value) if value.isdecimal() else None
