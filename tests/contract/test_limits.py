"""Limits and quotas as clients meet them (T33, T37), and what is recorded of every request."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

import httpx
import openai
import pytest
import uvicorn

from gateway.api import limiting
from gateway.api.app import create_app
from gateway.database.database import Database
from gateway.limits.budgets import Budgets
from gateway.limits.limiter import Limiter
from gateway.service.interfaces import NoCapacity
from tests.contract.metered import Metered, keys
from tests.databases import prepared

URL, EDITS = "/v1/images/generations", "/v1/images/edits"
BODY = {"prompt": "x", "model": "tiny"}


@contextmanager
def serving(make_app: Callable[[], object]) -> Iterator[str]:
    """Base url of a real server."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(), log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=60)
    assert not thread.is_alive()


class Counted:
    """OpenAI's SDK, and how often it calls."""

    def __init__(self, stack: ExitStack, url: str, monkeypatch) -> None:
        self.pauses: list[float] = []
        self.sdk = stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key="alice", max_retries=2))
        monkeypatch.setattr("openai._base_client.time.sleep", self.pauses.append)


@pytest.fixture
def sdk_of(monkeypatch) -> Iterator[Callable[[Callable[[], object]], Counted]]:
    with ExitStack() as stack:
        yield lambda make_app: Counted(stack, stack.enter_context(serving(make_app)), monkeypatch)


def test_t33_a_caller_over_its_limit_is_told_when_to_come_back(service, settings, sdk_of):
    counted = sdk_of(lambda: create_app(service, settings, keys=keys(requests_per_minute=2)))
    answer = counted.sdk.images.with_raw_response.generate(**BODY)
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    assert answer.headers["x-ratelimit-reset-requests"] in ("59s", "1m0s")
    counted.sdk.images.generate(**BODY)
    with pytest.raises(openai.RateLimitError) as told:
        counted.sdk.images.generate(**BODY)
    assert (told.value.type, told.value.code, told.value.param) == ("rate_limit_error", "rate_limit_exceeded", None)
    headers = told.value.response.headers
    assert 55 <= int(headers["retry-after"]) <= 60
    assert headers["retry-after-ms"] == headers["retry-after"] + "000"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert len(counted.pauses) == 2, "the SDK waits as long as it is told, and tries again"
    assert all(55 <= seconds <= 60 for seconds in counted.pauses)
    assert len(service.requests) == 2


def test_t37_a_used_up_budget_is_asked_for_once(service, settings, tmp_path, sdk_of):
    database = Database(settings.model_copy(update={"state_dir": prepared(tmp_path)}))
    metered = Metered(service, settings, database, tmp_path)

    @asynccontextmanager
    async def opened(app) -> AsyncIterator[None]:
        await database.open()
        yield
        await metered.meter.write()
        await database.close()

    def make_app():
        budgets = Budgets(metered.usage, metered.meter)
        limiter = Limiter(budgets=budgets)
        allowed = keys(device_seconds_per_month=0.5)
        return create_app(service, settings, keys=allowed, limiter=limiter, meter=metered.meter, lifespan=opened)

    counted = sdk_of(make_app)
    counted.sdk.images.generate(**BODY)
    with pytest.raises(openai.RateLimitError, match=r"0\.5 of 0\.5 device-seconds") as told:
        counted.sdk.images.generate(**BODY)
    assert (told.value.type, told.value.code) == ("insufficient_quota", "insufficient_quota")
    assert told.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in told.value.response.headers
    assert counted.pauses == [], "exactly one call"
    assert len(service.requests) == 1


async def test_pictures_per_minute(metered, service):
    client = metered.client(keys(images_per_minute=5))
    answer = await client.post(URL, json=BODY | {"n": 3})
    told = [answer.headers[f"x-ratelimit-{name}-images"] for name in ("limit", "remaining", "reset")]
    assert told in (["5", "2", "1m0s"], ["5", "2", "59s"])
    assert "x-ratelimit-limit-requests" not in answer.headers
    refused = await client.post(URL, json=BODY | {"n": 3})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-images"] == "2"
    streamed = await client.post(URL, json=BODY | {"n": 3, "stream": True})
    assert (streamed.status_code, streamed.headers["content-type"]) == (429, "application/json")
    streamed = await client.post(URL, json=BODY | {"n": 2, "stream": True})
    assert (streamed.status_code, streamed.headers["x-ratelimit-remaining-images"]) == (200, "0")
    assert len(service.requests) == 2


async def test_what_is_refused_as_invalid_is_a_request_and_no_picture(metered):
    client = metered.client(keys(images_per_minute=2, requests_per_minute=4))
    for body in ({"prompt": ""}, BODY | {"n": 99}):
        answer = await client.post(URL, json=body)
        assert answer.status_code == 400
    assert answer.headers["x-ratelimit-remaining-requests"] == "2", "also told with an error"
    assert (await client.post(URL, json=BODY | {"n": 2})).status_code == 200
    assert (await client.post(URL, content=b"{")).status_code in (400, 415)
    assert (await client.post(EDITS, content=b"")).status_code == 429, "of one key, whatever the endpoint"
    assert (await client.get("/v1/models")).status_code == 200, "nothing else is limited"


async def test_more_pictures_than_a_minute_allows_are_not_to_be_tried_again(metered):
    refused = await metered.client(keys(images_per_minute=2)).post(URL, json=BODY | {"n": 3})
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in refused.headers
    assert "ask for less" in refused.json()["error"]["message"]


async def test_full_is_not_the_caller_s_limit(metered, service):
    service.error = NoCapacity("full", retry_after_seconds=7)
    answer = await metered.client(keys(requests_per_minute=5)).post(URL, json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"


async def test_defaults_are_for_keys_without_limits_of_their_own(metered):
    client = metered.client(keys(requests_per_minute=3), default_requests_per_minute=1)
    bob = {"authorization": "Bearer bob"}
    assert [(await client.post(URL, json=BODY)).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert [(await client.post(URL, json=BODY, headers=bob)).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ("10.0.0.1", "10.0.0.2", 200),
        ("10.0.0.1", "10.0.0.1", 429),
        ("2001:db8::1", "2001:db8::2", 429),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", 200),
    ],
)
async def test_without_keys_defaults_are_for_each_address(service, settings, first, second, status):
    app = create_app(service, settings.model_copy(update={"default_requests_per_minute": 1}))
    for address, expected in ((first, 200), (second, status)):
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
            assert (await client.post(URL, json=BODY)).status_code == expected


async def test_requests_at_a_time_and_a_client_that_leaves(metered, service):
    client = metered.client(keys(concurrent_requests=1))
    service.hang = True
    for stream in (False, True):
        service.started.clear()
        first = asyncio.create_task(client.post(URL, json=BODY | {"stream": stream}))
        await asyncio.to_thread(service.started.wait, 10)
        refused = await client.post(URL, json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert "1 request is under way" in refused.json()["error"]["message"]
        first.cancel()
        await asyncio.wait([first])
    service.hang, service.error = False, RuntimeError("boom")
    assert [(await client.post(URL, json=BODY)).status_code for _ in range(2)] == [500, 500]


def test_durations_are_written_as_openai_writes_them():
    written = [limiting.duration(seconds) for seconds in (0, 0.0121, 1, 7.2, 59.9, 60, 125)]
    assert written == [b"0ms", b"13ms", b"1s", b"8s", b"1m0s", b"1m0s", b"2m5s"]
