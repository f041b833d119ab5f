"""Pictures behind ``image_url``: fetched from public addresses only (``gateway.addresses``), bounded in bytes and time.

Redirects are checked as the first url is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property

import httpx

from gateway.addresses import (
    MAX_URL,
    AddressRules,
    Resolve,
    UrlRefused,
    direct_transport,
    parse_url,
    request_to,
    resolve_name,
)
from gateway.api.errors import ApiError, invalid_picture
from gateway.decoding.pictures import FEWEST_BYTES, BadPicture, check_signature
from gateway.settings import Settings

MAX_REDIRECTS = 3
TIMEOUTS = httpx.Timeout(10.0, connect=5.0)
"""Seconds of silence."""
AT_ONCE = 16
"""Fetches of all requests."""

REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"accept": "image/png, image/jpeg, image/webp", "accept-encoding": "identity", "user-agent": "DisagFusion"}


@dataclass(frozen=True, slots=True)
class FetchRules:
    seconds: float
    """For one picture, redirects included."""
    ports: tuple[int, ...]
    allow_private: bool

    @classmethod
    def of(cls, settings: Settings) -> FetchRules:
        return cls(
            settings.image_url_timeout_seconds,
            settings.image_url_ports,
            settings.allow_private_image_urls,
        )


class PictureFetcher:
    def __init__(
        self, rules: FetchRules, resolve: Resolve = resolve_name, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._rules = rules
        self._addresses = AddressRules(rules.ports, rules.allow_private, resolve)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._given = transport

    @cached_property
    def _transport(self) -> httpx.AsyncBaseTransport:
        """Without the client around it, which keeps cookies."""
        return self._given or direct_transport()

    async def close(self) -> None:
        if "_transport" in self.__dict__:
            await self._transport.aclose()

    async def fetch(self, url: str, param: str, max_bytes: int, take: Callable[[int], None]) -> bytes:
        """The picture's file. ``take`` is told of every chunk and may raise. Raises ``ApiError``."""
        try:
            async with asyncio.timeout(self._rules.seconds), self._slots:
                return await self._follow(_parse(url, param), param, max_bytes, take)
        except TimeoutError:
            raise _failed(f"did not answer within {self._rules.seconds:g} s", param) from None
        except (httpx.TransportError, httpx.InvalidURL, OSError, UnicodeError):
            raise _failed("could not be fetched", param) from None
        except UrlRefused as refusal:
            raise _refused(str(refusal), param) from None

    async def _follow(self, url: httpx.URL, param: str, max_bytes: int, take: Callable[[int], None]) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            answer = await self._get(url, param, max_bytes, take)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise _failed(f"was redirected more than {MAX_REDIRECTS} times", param)

    async def _get(self, url: httpx.URL, param: str, max_bytes: int, take: Callable[[int], None]) -> bytes | httpx.URL:
        """The file, or where it is said to be."""
        addresses = await self._addresses.addresses(url)
        for address in addresses[:-1]:
            try:
                return await self._ask(url, address, param, max_bytes, take)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._ask(url, addresses[-1], param, max_bytes, take)

    async def _ask(
        self, url: httpx.URL, address: str, param: str, max_bytes: int, take: Callable[[int], None]
    ) -> bytes | httpx.URL:
        request = request_to(address, "GET", url, HEADERS, TIMEOUTS)
        async with aclosing(await self._transport.handle_async_request(request)) as response:
            location = response.headers.get("location")
            if response.status_code in REDIRECTS and location:
                return url.join(_parse(location, param, base=True))
            if response.status_code != 200:
                raise _failed(f"was answered with status {response.status_code}", param)
            return await _read(response, param, max_bytes, take)


async def _read(response: httpx.Response, param: str, max_bytes: int, take: Callable[[int], None]) -> bytes:
    """Ends at the first bytes that are no picture's, whatever the server says of their type."""
    body = bytearray()
    checked = False
    async for chunk in response.aiter_raw():  # as it is: what is compressed is no picture
        take(len(chunk))
        body += chunk
        if len(body) > max_bytes:
            raise _failed(f"has more than {max_bytes} bytes", param)
        if not checked and len(body) >= FEWEST_BYTES:
            _check_signature(bytes(body[:FEWEST_BYTES]), param)
            checked = True
    return bytes(body)


def _parse(url: str, param: str, *, base: bool = False) -> httpx.URL:
    """``base``: the url may be relative to another one."""
    if len(url) > MAX_URL:
        raise _refused(f"may have {MAX_URL} characters, or be a data URL", param)
    parsed = parse_url(url)
    if not base and not parsed.scheme:
        raise _refused("must begin with http://, https:// or data:", param)
    return parsed


def _refused(why: str, param: str) -> ApiError:
    return ApiError(
        f"The 'image_url' {why}.", code="invalid_image_url", param=param, kind="image_generation_user_error"
    )


def _check_signature(head: bytes, param: str) -> None:
    try:
        check_signature(head)
    except BadPicture as error:
        raise invalid_picture(str(error), param) from None


def _failed(what: str, param: str) -> ApiError:
    return invalid_picture(f"The picture at 'image_url' {what}.", param)
