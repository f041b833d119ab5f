"""Fetching pictures: only from public addresses, whatever names, redirects and servers do."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from PIL import Image

from gateway.addresses import MAX_URL, is_public, resolve_name
from gateway.api.errors import ApiError
from gateway.api.remote_pictures import FetchRules, PictureFetcher

PUBLIC = "93.184.215.14"
MAX_BYTES = 100_000


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


class Names:
    """A resolver with a memory. What a name leads to may change with every question."""

    def __init__(self, **names: list[str]) -> None:
        self.answers = {name.replace("_", "."): iter(addresses) for name, addresses in names.items()}
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return next(self.answers[host]).split()


Answer = Callable[[httpx.Request], httpx.Response]


def fetcher(names: Names, answer: Answer, **rules: object) -> tuple[PictureFetcher, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer(request)

    given = {"seconds": 5.0, "ports": (80, 443), "allow_private": False} | rules
    return PictureFetcher(FetchRules(**given), names, httpx.MockTransport(handle)), seen


async def fetch(made: PictureFetcher, url: str, take: Callable[[int], None] = lambda _: None) -> bytes:
    try:
        return await made.fetch(url, "image", MAX_BYTES, take)
    finally:
        await made.close()


async def refusal(made: PictureFetcher, url: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await fetch(made, url)
    error = caught.value
    assert (error.status, error.kind, error.param) == (400, "image_generation_user_error", "image")
    return error


def answered(data: bytes, status: int = 200, **headers: str) -> httpx.Response:
    async def body() -> AsyncIterator[bytes]:
        yield data[:40]
        yield data[40:]

    return httpx.Response(status, content=body(), headers=headers)


def found(_: httpx.Request) -> httpx.Response:
    return answered(PNG)


def never(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was asked")


# --- addresses --------------------------------------------------------------------------------------------------------

BAD = """
127.0.0.1 127.8.8.8 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254 100.64.0.1 100.100.100.200
168.63.129.16 192.0.0.192 192.0.2.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255
::1 :: fe80::1 fe80::1%1 fc00::1 fd00:ec2::254 fec0::1 ff02::1 2001:db8::1 ::127.0.0.1
::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:10.0.0.1
2002:7f00:1:: 2002:a9fe:a9fe:: 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2001:0:7f00:1::1
"""


@pytest.mark.parametrize("address", BAD.split())
async def test_addresses_that_are_not_public(address):
    assert not is_public(address)
    made, seen = fetcher(Names(cats_example=[address]), never)
    error = await refusal(made, "https://cats.example/a.png")
    assert error.code == "invalid_image_url"
    assert seen == []


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address):
    assert is_public(address)


async def test_one_bad_address_condemns_a_name():
    made, _ = fetcher(Names(cats_example=[f"{PUBLIC} 10.0.0.1"]), never)
    assert (await refusal(made, "http://cats.example/")).code == "invalid_image_url"


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f000001", "127.1", "[::1]", "localhost"])
async def test_ways_to_write_loopback(host):
    made = PictureFetcher(FetchRules(5.0, (80, 443), allow_private=False), resolve_name, httpx.MockTransport(never))
    assert (await refusal(made, f"http://{host}/a.png")).code == "invalid_image_url"


async def test_private_addresses_may_be_allowed():
    made, _ = fetcher(Names(cats_example=["10.0.0.1"]), found, allow_private=True)
    assert await fetch(made, "http://cats.example/") == PNG


# --- the connection goes where was checked ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "at"),
    [("https://cats.example/a%20b.png?x=1#f", "https://{}/a%20b.png?x=1"), ("http://cats.example", "http://{}")],
)
async def test_the_address_that_was_checked_is_the_one_connected_to(url, at):
    names = Names(cats_example=[PUBLIC, "127.0.0.1"])  # another answer the second time: DNS rebinding
    made, seen = fetcher(names, found)
    assert await fetch(made, url) == PNG
    (request,) = seen
    assert str(request.url) == at.format(PUBLIC)
    assert request.headers["host"] == "cats.example"
    assert request.extensions["sni_hostname"] == "cats.example"
    assert request.headers["accept-encoding"] == "identity"
    assert len(names.asked) == 1


async def test_ipv6_and_ports():
    made, seen = fetcher(Names(cats_example=["2606:4700:4700::1111"]), found, ports=(8080,))
    assert await fetch(made, "http://cats.example:8080/a.png") == PNG
    assert str(seen[0].url) == "http://[2606:4700:4700::1111]:8080/a.png"
    assert seen[0].headers["host"] == "cats.example:8080"


async def test_names_in_any_language():
    names = Names(**{"xn--bcher-kva_example": [PUBLIC]})
    made, seen = fetcher(names, found)
    assert await fetch(made, "https://bücher.example/a.png") == PNG
    assert seen[0].headers["host"] == seen[0].extensions["sni_hostname"] == "xn--bcher-kva.example"


async def test_the_next_address_is_tried():
    def second_only(request: httpx.Request) -> httpx.Response:
        if request.url.host == "1.1.1.1":
            raise httpx.ConnectError("unreachable")
        return found(request)

    made, seen = fetcher(Names(cats_example=[f"1.1.1.1 {PUBLIC}"]), second_only)
    assert await fetch(made, "http://cats.example/") == PNG
    assert len(seen) == 2


# --- urls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://cats.example/a.png",
        "gopher://cats.example/",
        "//cats.example/a.png",
        "cats.example/a.png",
        "",
        "http://",
        "http:///a.png",
        "http://[::1",
        "http://cats.example:99999/",
        "http://cats.example:22/",
        "http://cats.example:5600/",
        "http://user@cats.example/",
        "http://user:word@cats.example/",
        "http://cats.example/" + "x" * MAX_URL,
        "http://cats.example/\n",
    ],
)
async def test_urls_that_are_refused(url):
    made, seen = fetcher(Names(cats_example=[PUBLIC]), never)
    assert (await refusal(made, url)).code == "invalid_image_url"
    assert seen == []


# --- redirects --------------------------------------------------------------------------------------------------------


def redirecting(to: str, status: int = 302) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/start":
            return httpx.Response(status, headers={"location": to})
        return found(request)

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(status):
    names = Names(cats_example=[PUBLIC], dogs_example=["1.1.1.1"])
    made, seen = fetcher(names, redirecting("https://dogs.example/a.png", status))
    assert await fetch(made, "http://cats.example/start") == PNG
    assert [str(request.url) for request in seen] == [f"http://{PUBLIC}/start", "https://1.1.1.1/a.png"]


async def test_relative_redirects_are_resolved_again():
    names = Names(cats_example=[PUBLIC, PUBLIC])
    made, seen = fetcher(names, redirecting("/other"))
    assert await fetch(made, "http://cats.example/start") == PNG
    assert seen[1].headers["host"] == "cats.example"
    assert len(names.asked) == 2


@pytest.mark.parametrize(
    "to",
    [
        "http://inside.example/",
        "http://rebound.example/",
        "//inside.example/",
        "file:///etc/passwd",
        "http://cats.example:22/",
        "http://a:b@cats.example/",
        "http://[::1",
    ],
)
async def test_redirects_are_checked_too(to):
    names = Names(
        cats_example=[PUBLIC, PUBLIC], inside_example=["169.254.169.254"], rebound_example=[f"{PUBLIC} 127.0.0.1"]
    )
    made, seen = fetcher(names, redirecting(to))
    assert (await refusal(made, "http://cats.example/start")).code == "invalid_image_url"
    assert len(seen) == 1


async def test_redirects_that_go_round():
    names = Names(cats_example=[PUBLIC] * 9)
    made, seen = fetcher(names, redirecting("/start"))
    assert "redirected more than 3 times" in (await refusal(made, "http://cats.example/start")).message
    assert len(seen) == 4


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (answered(PNG, 404), "status 404"),
        (httpx.Response(302), "status 302"),
        (answered(b"<html>hello, this is a page"), "must be PNG, JPEG or WebP"),
        (answered(b"<html>no picture", **{"content-type": "image/png"}), "must be PNG"),
        (answered(PNG + bytes(MAX_BYTES)), "more than 100000 bytes"),
    ],
)
async def test_answers_that_are_no_picture(response, words):
    made, _ = fetcher(Names(cats_example=[PUBLIC]), lambda _: response)
    error = await refusal(made, "http://cats.example/")
    assert error.code == "invalid_image"
    assert words in error.message


async def test_what_is_said_of_the_type_is_not_believed():
    made, _ = fetcher(Names(cats_example=[PUBLIC]), lambda _: answered(PNG, **{"content-type": "text/html"}))
    assert await fetch(made, "http://cats.example/") == PNG


async def test_nobody_is_told_why_a_server_could_not_be_reached():
    def unreachable(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused by 10.1.2.3")

    made, _ = fetcher(Names(cats_example=[PUBLIC]), unreachable)
    assert (await refusal(made, "http://cats.example/")).message == "The picture at 'image_url' could not be fetched."


async def test_every_chunk_is_counted():
    taken: list[int] = []
    made, _ = fetcher(Names(cats_example=[PUBLIC]), found)
    await fetch(made, "http://cats.example/", taken.append)
    assert sum(taken) == len(PNG)


# --- a real server ----------------------------------------------------------------------------------------------------

Serve = Callable[[Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]], Awaitable[int]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\nconnection: close\r\n\r\n"


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers = []

    async def start(handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> int:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    yield start
    for server in servers:
        server.close()


def local(port: int, seconds: float = 10.0) -> tuple[PictureFetcher, str]:
    rules = FetchRules(seconds, (port,), allow_private=True)
    return PictureFetcher(rules, Names(cats_example=["127.0.0.1"] * 9)), f"http://cats.example:{port}/a.png"


async def test_a_real_fetch(serve):
    async def whole(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + PNG)
        await writer.drain()

    assert await fetch(*local(await serve(whole))) == PNG


async def test_a_body_without_end(serve):
    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + PNG)
        while True:
            writer.write(bytes(10_000))
            await writer.drain()

    assert "more than 100000 bytes" in (await refusal(*local(await serve(endless)))).message


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + PNG[:40]])
async def test_a_server_that_falls_silent(serve, sent):
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await reader.read()  # until the fetcher hangs up

    assert "within 0.2 s" in (await refusal(*local(await serve(silent), seconds=0.2))).message


async def test_a_server_that_trickles(serve):
    """No silence is long enough to end it; the time for the whole is."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + PNG[:40])
        while not reader.at_eof():
            writer.write(b"\0")
            await writer.drain()
            await asyncio.wait([asyncio.create_task(reader.read(1))], timeout=0.02)

    assert "within 0.3 s" in (await refusal(*local(await serve(trickle), seconds=0.3))).message


async def test_what_is_no_http(serve):
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()

    assert (await refusal(*local(await serve(babble)))).message.endswith("could not be fetched.")


async def test_a_port_where_nobody_listens(unused_tcp_port):
    assert (await refusal(*local(unused_tcp_port))).message.endswith("could not be fetched.")


async def test_proxies_of_the_environment_are_not_used(serve, monkeypatch):
    async def whole(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + PNG)
        await writer.drain()

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert await fetch(*local(await serve(whole))) == PNG
