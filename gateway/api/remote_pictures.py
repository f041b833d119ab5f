"""Pictures behind ``image_url``: fetched from public addresses only, bounded in bytes and time.

A name is resolved here, every address that it has is checked, and the connection goes to the very address that was
checked: a name that answers differently the next time (DNS rebinding) gains nothing. Redirects are checked likewise.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property

import httpx

from gateway.api.errors import ApiError
from gateway.api.input_pictures import FEWEST_BYTES, check_signature, invalid
from gateway.settings import Settings

MAX_REDIRECTS = 3
MAX_URL = 8192
"""Characters."""
TIMEOUTS = httpx.Timeout(10.0, connect=5.0)
"""Seconds of silence."""
ADDRESSES_TRIED = 3
AT_ONCE = 16
"""Fetches of all requests."""

REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"accept": "image/png, image/jpeg, image/webp", "accept-encoding": "identity", "user-agent": "DisagFusion"}

NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b::/96")))
"""Addresses that pass for public ones: of services that Azure and Oracle offer to their own machines, and of any IPv4
address behind NAT64."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → IP addresses. Raises ``OSError``."""


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


async def resolve_name(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class PictureFetcher:
    def __init__(
        self, rules: FetchRules, resolve: Resolve = resolve_name, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._rules = rules
        self._resolve = resolve
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._given = transport

    @cached_property
    def _transport(self) -> httpx.AsyncBaseTransport:
        """Without the client around it, which keeps cookies. Made for the first fetch: it reads certificates."""
        # A kept connection would be found again by its address, and serve another name at that address.
        return self._given or httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,  # a proxy would resolve the name again
        )

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

    async def _follow(self, url: httpx.URL, param: str, max_bytes: int, take: Callable[[int], None]) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            answer = await self._get(url, param, max_bytes, take)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise _failed(f"was redirected more than {MAX_REDIRECTS} times", param)

    async def _get(self, url: httpx.URL, param: str, max_bytes: int, take: Callable[[int], None]) -> bytes | httpx.URL:
        """The file, or where it is said to be."""
        addresses = await self._addresses(url, param)
        for address in addresses[:-1]:
            try:
                return await self._ask(url, address, param, max_bytes, take)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._ask(url, addresses[-1], param, max_bytes, take)

    async def _addresses(self, url: httpx.URL, param: str) -> Sequence[str]:
        """Those to connect to. One bad address condemns the name: whose else would it be?"""
        port = url.port or (443 if url.scheme == "https" else 80)
        if url.scheme not in ("http", "https"):
            raise _refused(f"must begin with http:// or https://, not {url.scheme[:20]}:", param)
        if url.userinfo:
            raise _refused("must hold no user name or password", param)
        if port not in self._rules.ports:
            raise _refused(f"must use port {' or '.join(map(str, self._rules.ports))}, not {port}", param)
        if not url.host:
            raise _refused("names no host", param)
        addresses = await self._resolve(_host(url), port)
        if not addresses or not (self._rules.allow_private or all(map(is_public, addresses))):
            raise _refused("must lead to a public address", param)
        return addresses[:ADDRESSES_TRIED]

    async def _ask(
        self, url: httpx.URL, address: str, param: str, max_bytes: int, take: Callable[[int], None]
    ) -> bytes | httpx.URL:
        request = httpx.Request(
            "GET",
            url.copy_with(host=address, fragment=None),
            headers={"host": url.netloc.decode("ascii"), **HEADERS},
            extensions={"sni_hostname": _host(url), "timeout": TIMEOUTS.as_dict()},
        )
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
            check_signature(bytes(body[:FEWEST_BYTES]), param)
            checked = True
    return bytes(body)


def is_public(address: str) -> bool:
    """Neither private, loopback, link-local, multicast nor reserved, nor such an address in the dress of IPv6."""
    ip: Address = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local or ip.teredo:
            return False
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in network for network in NOT_PUBLIC))


def _host(url: httpx.URL) -> str:
    """In ASCII, where ``url.host`` would be in letters of any language."""
    return url.raw_host.decode("ascii")


def _parse(url: str, param: str, *, base: bool = False) -> httpx.URL:
    """``base``: the url may be relative to another one."""
    if len(url) > MAX_URL:
        raise _refused(f"may have {MAX_URL} characters, or be a data URL", param)
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise _refused("is no url", param) from None
    if not base and not parsed.scheme:
        raise _refused("must begin with http://, https:// or data:", param)
    return parsed


def _refused(why: str, param: str) -> ApiError:
    return ApiError(
        f"The 'image_url' {why}.", code="invalid_image_url", param=param, kind="image_generation_user_error"
    )


def _failed(what: str, param: str) -> ApiError:
    return invalid(f"The picture at 'image_url' {what}.", param)
