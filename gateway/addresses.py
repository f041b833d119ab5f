"""Where urls that clients send may lead: to public addresses, at the ports that are allowed.

A name is resolved here, every address that it has is checked, and the connection goes to the very address that was
checked: a name that answers differently the next time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx

MAX_URL = 8192
"""Characters."""
ADDRESSES_TRIED = 3

NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b::/96")))
"""Addresses that pass for public ones: of services that Azure and Oracle offer to their own machines, and of any IPv4
address behind NAT64."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → IP addresses. Raises ``OSError``."""


class UrlRefused(Exception):
    """The text goes on after the url's name: "must …", "names no host"."""


async def resolve_name(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True, slots=True)
class AddressRules:
    ports: tuple[int, ...]
    allow_private: bool
    resolve: Resolve = resolve_name

    async def addresses(self, url: httpx.URL) -> Sequence[str]:
        """Those to connect to. One bad address condemns the name: whose else would it be?

        Raises ``UrlRefused``, or ``OSError`` or ``UnicodeError`` for a name that cannot be resolved.
        """
        port = url.port or (443 if url.scheme == "https" else 80)
        if url.scheme not in ("http", "https"):
            raise UrlRefused(f"must begin with http:// or https://, not {url.scheme[:20]}:")
        if url.userinfo:
            raise UrlRefused("must hold no user name or password")
        if port not in self.ports:
            raise UrlRefused(f"must use port {' or '.join(map(str, self.ports))}, not {port}")
        if not url.host:
            raise UrlRefused("names no host")
        addresses = await self.resolve(ascii_host(url), port)
        if not addresses or not (self.allow_private or all(map(is_public, addresses))):
            raise UrlRefused("must lead to a public address")
        return addresses[:ADDRESSES_TRIED]


def parse_url(text: str) -> httpx.URL:
    """It may be relative to another one. Raises ``UrlRefused``."""
    if len(text) > MAX_URL:
        raise UrlRefused(f"may have {MAX_URL} characters")
    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise UrlRefused("is no url") from None


def request_to(
    address: str, method: str, url: httpx.URL, headers: Mapping[str, str], timeout: httpx.Timeout, content: bytes = b""
) -> httpx.Request:
    """For a transport without a client around it: it connects to ``address``, whatever the name leads to by now."""
    return httpx.Request(
        method,
        url.copy_with(host=address, fragment=None),
        headers={"host": url.netloc.decode("ascii"), **headers},
        content=content,
        extensions={"sni_hostname": ascii_host(url), "timeout": timeout.as_dict()},
    )


def direct_transport() -> httpx.AsyncHTTPTransport:
    """Reads certificates, so it is made when it is first needed."""
    # A kept connection would be found again by its address, and serve another name at that address.
    return httpx.AsyncHTTPTransport(
        limits=httpx.Limits(max_keepalive_connections=0),
        trust_env=False,  # a proxy would resolve the name again
    )


def is_public(address: str) -> bool:
    """Neither private, loopback, link-local, multicast nor reserved, nor such an address in the dress of IPv6."""
    ip: Address = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local or ip.teredo:
            return False
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in network for network in NOT_PUBLIC))


def ascii_host(url: httpx.URL) -> str:
    """Where ``url.host`` would be in letters of any language."""
    return url.raw_host.decode("ascii")
