"""Asks the operator's moderation service, over HTTP, about a prompt or a picture. The JSON is in docs/operating.md.

What was asked about never reaches a log from here, nor does anything that the hook writes but short category names.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import httpx
import msgspec
import pybase64
from pydantic import SecretStr

AT_ONCE = 16
"""Questions of all requests: each holds its pictures a second time, as base64."""

MAX_ANSWER_BYTES = 64 << 10

_CATEGORY = re.compile(r"[A-Za-z0-9_./-]{1,40}", re.ASCII)
"""Longer or other text might be the prompt's."""


class Stage(StrEnum):
    BEFORE = "before"
    """Prompt and input pictures, before anything is computed."""
    AFTER = "after"
    """A finished picture, or an intermediate one."""


@dataclass(frozen=True, slots=True)
class Question:
    stage: Stage
    request_id: str
    tenant: str
    model: str
    prompt: str
    negative_prompt: str | None
    pictures: Mapping[str, bytes]
    """Name → encoded picture: those of ``ImageRequest.uploads`` before, ``result`` after."""
    picture_format: str = "png"
    image_index: int | None = None
    """Which of the request's pictures it is; only after."""
    revised_prompt: str | None = None
    """What an enhancer made of ``prompt``, and the picture was made of; only after."""

    def body(self) -> bytes:
        media_type = f"image/{self.picture_format}"
        fields: dict[str, object] = {
            "stage": self.stage,
            "request_id": self.request_id,
            "tenant": self.tenant,
            "model": self.model,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "pictures": [
                {"name": name, "media_type": media_type, "b64_json": pybase64.b64encode(data).decode("ascii")}
                for name, data in self.pictures.items()
            ],
        }
        if self.image_index is not None:
            fields["image_index"] = self.image_index
        if self.revised_prompt is not None:
            fields["revised_prompt"] = self.revised_prompt
        return msgspec.json.encode(fields)


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    categories: tuple[str, ...] = ()
    """Why not, for the log."""


class HookFailed(Exception):
    """There is no verdict. The text is for the log and holds nothing of what was asked."""


class _Answer(msgspec.Struct):
    allowed: bool
    categories: list[str] = []


class Hook:
    def __init__(
        self,
        url: str,
        seconds: float,
        secret: SecretStr | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """``seconds``: for a whole answer. ``secret`` is sent as a bearer token."""
        self._url = url
        self._seconds = seconds
        self._headers = {"content-type": "application/json", "accept": "application/json", "user-agent": "DisagFusion"}
        if secret is not None:
            self._headers["authorization"] = f"Bearer {secret.get_secret_value()}"
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._given = transport

    @cached_property
    def _transport(self) -> httpx.AsyncBaseTransport:
        """Without the client around it, which logs urls, keeps cookies and believes proxy variables."""
        return self._given or httpx.AsyncHTTPTransport(trust_env=False)

    async def close(self) -> None:
        if "_transport" in self.__dict__:
            await self._transport.aclose()

    async def ask(self, question: Question) -> Verdict:
        """Raises ``HookFailed``."""
        try:
            async with asyncio.timeout(self._seconds), self._slots:
                return _verdict(*await self._post(question.body()))
        except TimeoutError:
            raise HookFailed(f"no answer within {self._seconds:g} s") from None
        except httpx.TransportError as error:
            raise HookFailed(f"cannot be reached: {type(error).__name__}") from None

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        try:
            return await self._post_once(body)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # A connection that was kept, and that the hook closed just then. To ask twice changes nothing.
            return await self._post_once(body)

    async def _post_once(self, body: bytes) -> tuple[int, bytes]:
        request = httpx.Request("POST", self._url, headers=self._headers, content=body)
        answer = bytearray()
        async with aclosing(await self._transport.handle_async_request(request)) as response:
            async for chunk in response.aiter_raw():
                answer += chunk
                if len(answer) > MAX_ANSWER_BYTES:
                    raise HookFailed(f"its answer has more than {MAX_ANSWER_BYTES} bytes")
            return response.status_code, bytes(answer)


def _verdict(status: int, answer: bytes) -> Verdict:
    if status != 200:
        raise HookFailed(f"it answered with status {status}; 200 is wanted")
    try:
        told = msgspec.json.decode(answer, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):  # whose texts may quote the answer
        raise HookFailed('its answer is not {"allowed": true} or {"allowed": false, "categories": […]}') from None
    return Verdict(told.allowed, tuple(name for name in told.categories[:8] if _CATEGORY.fullmatch(name)))
