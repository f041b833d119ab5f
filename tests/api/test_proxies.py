from __future__ import annotations

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Router

from gateway.api.proxies import Proxies
from gateway.given_settings import load_settings
from gateway.settings import InvalidSettings

OURS = ("10.0.0.0/8", "::1/128")
CLIENT = "203.0.113.9"


async def seen(peer: str = "10.0.0.1", host: str = "gateway:8000", **headers: str | list[str]) -> tuple[str, str]:
    """Base url and client address, as a handler below sees them. ``x_forwarded_for`` stands for its header."""

    async def show(request: Request) -> JSONResponse:
        return JSONResponse([str(request.base_url), request.client.host])

    router = Router()
    router.add_route("/v1/x", show)
    transport = httpx.ASGITransport(Proxies(router, OURS), client=(peer, 5))
    sent = [("host", host)]
    for name, values in headers.items():
        sent += [(name.replace("_", "-"), value) for value in ([values] if isinstance(values, str) else values)]
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway:8000") as client:
        answer = await client.get("/v1/x", headers=sent)
    assert answer.status_code == 200, answer.text
    return tuple(answer.json())


ALL = {
    "x_forwarded_for": CLIENT,
    "x_forwarded_proto": "https",
    "x_forwarded_host": "images.example",
    "x_forwarded_port": "8443",
    "x_forwarded_prefix": "/ai/images/",
}


async def test_all_headers_count_together():
    assert await seen(**ALL) == ("https://images.example:8443/ai/images/", CLIENT)


@pytest.mark.parametrize("peer", [CLIENT, "11.0.0.1", "::2", "nonsense"])
async def test_nothing_counts_from_anybody_else(peer):
    forwarded = {"forwarded": "for=1.2.3.4;host=evil.example;proto=https"}
    assert await seen(peer, **ALL, **forwarded) == ("http://gateway:8000/", peer)


@pytest.mark.parametrize("peer", ["::1", "::ffff:10.0.0.1"])
async def test_ipv6_peers(peer):
    assert (await seen(peer, **ALL))[1] == CLIENT


async def test_nothing_told_changes_nothing():
    assert await seen() == ("http://gateway:8000/", "10.0.0.1")


async def test_a_passed_on_host_and_a_default_port():
    assert (await seen(host="a.example", x_forwarded_proto="https", x_forwarded_port="443"))[0] == "https://a.example/"
    assert (await seen(x_forwarded_host="a.example:8080", x_forwarded_port="1"))[0] == "http://a.example:8080/"


async def test_a_prefix_that_is_also_the_start_of_the_path():
    assert (await seen(x_forwarded_prefix="/v1"))[0] == "http://gateway:8000/v1/"


async def test_the_client_is_the_right_most_that_is_no_proxy():
    chain = ["6.6.6.6, 203.0.113.9", "10.0.0.7"]
    told = await seen(
        x_forwarded_for=chain, x_forwarded_proto="gopher, https, http", x_forwarded_host="e, a.example, b"
    )
    assert told == ("https://a.example/", CLIENT)


async def test_only_proxies_in_the_chain():
    assert (await seen(x_forwarded_for="10.0.0.9, 10.0.0.7"))[1] == "10.0.0.9"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("for=203.0.113.9;proto=https;host=a.example", ("https://a.example/", CLIENT)),
        ('FOR="203.0.113.9:4711" ; Proto=HTTPS;host="a.example:8443"', ("https://a.example:8443/", CLIENT)),
        ('for="[2001:db8::1]:4711"', ("http://gateway:8000/", "2001:db8::1")),
        ("for=6.6.6.6;host=e.example, for=203.0.113.9;host=a.example, for=10.0.0.7", ("http://a.example/", CLIENT)),
        ("for=unknown;proto=https, for=10.0.0.7", ("https://gateway:8000/", "10.0.0.7")),
        ("for=_hidden;host=a.example", ("http://a.example/", "10.0.0.1")),
        ('for="broken', ("http://gateway:8000/", "10.0.0.1")),
        ("", ("http://gateway:8000/", "10.0.0.1")),
        ("for=203.0.113.9,,", ("http://gateway:8000/", "10.0.0.1")),
    ],
)
async def test_forwarded(header, expected):
    assert await seen(forwarded=header, x_forwarded_host="not.this.example") == expected


@pytest.mark.parametrize(
    "header",
    [
        {"x_forwarded_proto": "javascript"},
        {"x_forwarded_host": "evil.example/path?"},
        {"x_forwarded_host": 'a"b'},
        {"x_forwarded_prefix": "//evil.example"},
        {"x_forwarded_prefix": "relative"},
        {"x_forwarded_port": "http"},
        {"x_forwarded_for": "nobody"},
    ],
)
async def test_nonsense_is_ignored(header):
    assert await seen(**header) == ("http://gateway:8000/", "10.0.0.1")


def test_the_setting():
    assert load_settings(trusted_proxies=["10.0.0.7", "fd00::/8"]).trusted_proxies == ("10.0.0.7/32", "fd00::/8")
    with pytest.raises(InvalidSettings, match=r"DISAGFUSION_TRUSTED_PROXIES.*host bits"):
        load_settings(trusted_proxies=["10.0.0.7/8"])
