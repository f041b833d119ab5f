"""What comes before a request reaches the application: noise, endless headers, headers that never come."""

from __future__ import annotations

import asyncio
import json

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.api import http_protocol
from gateway.api.http_protocol import MAX_HEAD_BYTES, HttpProtocol

GOOD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port(monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.3)
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpProtocol(config, state, {}, loop), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def exchange(port, *pieces):
    """All that is answered until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


def fault(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert f"content-length: {len(body)}".encode() in head
    return int(head.split()[1]), error["code"]


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n", b"\r\n\r\nhello\r\n"]
)
async def test_noise_is_answered_in_the_usual_envelope(port, noise):
    assert fault(await exchange(port, noise)) == (400, "invalid_http")


async def test_headers_without_end(port):
    endless = b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES
    assert fault(await exchange(port, endless)) == (431, "request_too_large")


async def test_headers_that_never_come(port):
    assert fault(await exchange(port, b"GET / HT")) == (408, "request_timeout")
    assert await exchange(port) == b""


async def test_a_further_request_has_its_own_time(port):
    answer = await exchange(port, GOOD, GOOD, b"GET / HT")
    assert answer.count(b"200 OK") == 2
    assert b"408 Request Timeout" in answer
