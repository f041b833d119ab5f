"""What a request's address is to its client, told by reverse proxies that are trusted; anybody else's word is ignored.

``Forwarded`` (RFC 7239) counts if there is one, else the ``X-Forwarded-…`` headers, all of them together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Address = IPv4Address | IPv6Address

DEFAULT_PORTS = {"http": "80", "https": "443"}

_PAIR = re.compile(r"""[ \t]*([\w!#$%&'*+.^`|~-]+)=("(?:[^"\\]|\\.)*"|[^\s;,"]*)[ \t]*([;,]|$)""", re.ASCII)
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", re.ASCII)
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~%-]+)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Told:
    """What the proxies say. Empty where they say nothing."""

    client: str = ""
    scheme: str = ""
    host: str = ""
    port: str = ""
    prefix: str = ""


class Proxies:
    """Middleware around all others, so that spans and urls see the client's side."""

    def __init__(self, app: ASGIApp, trusted: Iterable[str]) -> None:
        self.app = app
        self._trusted = tuple(map(ip_network, trusted))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("client") and self._trusts(scope["client"][0]):
            headers = Headers(scope=scope)
            told = self._forwarded(headers) if "forwarded" in headers else self._x_forwarded(headers)
            scope = _seen_from_outside(scope, told)
        await self.app(scope, receive, send)

    def _trusts(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._trusted)

    def _forwarded(self, headers: Headers) -> Told:
        elements = _elements(", ".join(headers.getlist("forwarded")))
        hops = self._hops([element.get("for", "") for element in elements])
        outside = elements[-hops:]  # of these, each was written by a trusted proxy
        found = {name: value for element in reversed(outside) for name, value in element.items() if value}
        return Told(
            _client(element.get("for", "") for element in outside),
            found.get("proto", "").lower(),
            found.get("host", ""),
        )

    def _x_forwarded(self, headers: Headers) -> Told:
        addresses = _listed(headers, "for")
        hops = self._hops(addresses)

        def outermost(name: str) -> str:
            """By the outermost trusted proxy; what stands before that, the client may have written."""
            values = _listed(headers, name)
            return values[-min(hops, len(values))] if values else ""

        return Told(
            _client(addresses[-hops:]),
            outermost("proto").lower(),
            outermost("host"),
            outermost("port"),
            outermost("prefix").rstrip("/"),
        )

    def _hops(self, addresses: Sequence[str]) -> int:
        """How many of the right-most entries trusted proxies wrote: to the first address that is none of theirs."""
        for hops, address in enumerate(reversed(addresses), start=1):
            if not self._trusts(_without_port(address)):
                return hops
        return max(len(addresses), 1)


def _seen_from_outside(scope: Scope, told: Told) -> Scope:
    changed = dict(scope)
    if told.client:
        changed["client"] = (told.client, 0)
    if told.scheme in DEFAULT_PORTS:
        changed["scheme"] = told.scheme
    host = _HOST.fullmatch(told.host or Headers(scope=scope).get("host", ""))
    if host:
        port = host[2] or (told.port if told.port.isdecimal() else "")
        shown = host[1] if port in ("", DEFAULT_PORTS.get(changed["scheme"])) else f"{host[1]}:{port}"
        others = [(name, value) for name, value in scope["headers"] if name != b"host"]
        changed["headers"] = [(b"host", shown.encode()), *others]
        changed["server"] = (host[1], int(port or DEFAULT_PORTS[changed["scheme"]]))
    if _PREFIX.fullmatch(told.prefix):
        changed["root_path"] = told.prefix
        changed["path"] = told.prefix + scope["path"]
        changed["raw_path"] = told.prefix.encode() + (scope.get("raw_path") or b"")
    return changed


def _elements(text: str) -> list[dict[str, str]]:
    """The proxies' entries, the nearest one last; nothing if any of it cannot be understood."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            return [{}]
        name, value, end = pair.groups()
        elements[-1][name.lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        if end == ",":
            elements.append({})
        at = pair.end()
    return elements


def _listed(headers: Headers, name: str) -> list[str]:
    text = ",".join(headers.getlist(f"x-forwarded-{name}"))
    return [value.strip() for value in text.split(",")] if text else []


def _client(outside: Iterable[str]) -> str:
    """The address furthest out that is one; proxies may hide or not know it."""
    addresses = (_address(_without_port(address)) for address in outside)
    return str(next(filter(None, addresses), ""))


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(text: str) -> str:
    """``10.0.0.1:80``, ``[::1]:80``, ``[::1]`` and bare addresses."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
