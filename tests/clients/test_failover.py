"""Several addresses of one service."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from clients import generate
from clients.address import base_urls
from clients.failover import AsyncFailover, Failover
from clients.options import parse, parser

URLS = ("http://a/v1", "http://b:81/x/v1", "http://c/v1")


class Web:
    """What each host answers: a status, or an error."""

    def __init__(self, **hosts: object) -> None:
        self.hosts = hosts
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["host"] == request.url.netloc.decode()
        self.asked.append(str(request.url))
        answer = self.hosts[request.url.host]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(int(str(answer)), json={"read": json.loads(request.read() or b"null")})

    def post(self, url: str = "http://a/v1/images") -> httpx.Response:
        with httpx.Client(transport=Failover(URLS, httpx.MockTransport(self))) as client:
            return client.post(url, json=["body"])


def test_the_next_is_asked_at_connection_errors_and_503() -> None:
    web = Web(a=httpx.ConnectError("refused"), b=503, c=200)
    answer = web.post()
    assert (answer.status_code, answer.json()) == (200, {"read": ["body"]})
    assert web.asked == ["http://a/v1/images", "http://b:81/x/v1/images", "http://c/v1/images"]


@pytest.mark.parametrize("status", [200, 400, 429, 500])
def test_any_other_answer_is_the_answer(status: int) -> None:
    web = Web(a=status)
    assert web.post().status_code == status


def test_the_last_ones_refusal_or_error_is_what_is_told() -> None:
    assert Web(a=503, b=503, c=503).post().status_code == 503
    with pytest.raises(httpx.ConnectTimeout):
        Web(a=503, b=503, c=httpx.ConnectTimeout("late")).post()


def test_what_may_have_been_begun_is_not_sent_again() -> None:
    with pytest.raises(httpx.ReadError):
        Web(a=httpx.ReadError("gone"), b=200).post()


def test_other_services_are_left_alone() -> None:
    web = Web(pictures=503)
    assert web.post("http://pictures/v1/x").status_code == 503
    assert web.asked == ["http://pictures/v1/x"]


async def test_the_one_that_answered_is_asked_first_from_then_on() -> None:
    web = Web(a=503, b=200, c=200)
    async with httpx.AsyncClient(transport=AsyncFailover(URLS, httpx.MockTransport(web))) as client:
        for _ in range(2):
            assert (await client.get("http://a/v1/models")).status_code == 200
    assert [httpx.URL(url).host for url in web.asked] == ["a", "b", "b"]


def test_addresses_on_the_command_line(tmp_path: Path) -> None:
    given = ["x", "-o", str(tmp_path / "x.png"), "--url", "http://a, http://b:81/x/v1", "--url", "http://c/v1"]
    assert parse(parser("p", "d"), given).url == URLS
    assert parse(parser("p", "d"), given[:3]).url == base_urls("http://127.0.0.1:8000/v1")


def test_a_command_goes_to_the_next(server, tmp_path: Path) -> None:
    server.body = {"data": [{"b64_json": "aW1hZ2U="}]}
    output = tmp_path / "star.png"
    urls = f"http://127.0.0.1:1,{server.url}"
    assert generate.main(["a star", "-o", str(output), "--no-stream", "--url", urls]) == 0
    assert output.read_bytes() == b"image"
