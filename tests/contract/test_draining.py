"""A gateway that is about to end, or has no servers while others have: what clients and probes see."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.api.app import create_app
from gateway.cells.door import Door
from gateway.shell.ending import wind_down

BODY = {"prompt": "x"}
URL = "/v1/images/generations"


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
async def client(service, settings, decoders, door):
    app = create_app(service, settings, decoders=decoders, door=door)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test") as client:
        yield client


def assert_refused(answer: httpx.Response, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "service_unavailable_error"
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", [URL, "/v1/images/edits", "/v1/files", "/v1/batches"])
async def test_new_work_is_refused_from_then_on(client, door, service, path) -> None:
    door.is_draining = True
    answer = await client.post(path, json=BODY)
    assert_refused(answer, "draining")
    assert answer.headers["connection"] == "close"
    assert service.requests == []


async def test_probes_hear_of_it_at_once_and_the_process_is_alive(client, door) -> None:
    assert (await client.get("/readyz")).json()["status"] == "ready"
    door.is_draining = True
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (await client.get("/healthz")).status_code == 200


async def test_what_is_no_work_is_answered_to_the_end(client, door) -> None:
    door.is_draining = True
    assert (await client.get("/v1/models")).status_code == 200
    assert (await client.post("/v1/batches/none/cancel")).status_code == 400, "this service has no batches"


async def test_what_is_under_way_is_finished(client, door, service) -> None:
    service.hang = True
    request = asyncio.create_task(client.post(URL, json=BODY))
    await asyncio.to_thread(service.started.wait, 10)
    ending = asyncio.create_task(wind_down(door, _Desk(), _Cells(), 60))
    await asyncio.sleep(0)
    assert door.is_draining
    assert_refused(await client.post(URL, json=BODY), "draining")
    assert not ending.done()
    service.resume()
    assert (await request).status_code == 200
    assert await ending > 0


async def test_but_not_for_longer_than_allowed(client, door, service) -> None:
    service.hang = True
    request = asyncio.create_task(client.post(URL, json=BODY))
    await asyncio.to_thread(service.started.wait, 10)
    assert await wind_down(door, _Desk(), _Cells(), 0.01) == 0
    assert door.under_way == 1
    service.resume()
    await request
    assert door.under_way == 0


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "a"}])
async def test_and_then_it_is_told_to_ask_elsewhere(client, door, service, headers) -> None:
    """The HTTP server cancels what is left, as this does: that must not be a connection that breaks."""
    service.hang = True
    request = asyncio.create_task(client.post(URL, json=BODY, headers=headers))
    await asyncio.to_thread(service.started.wait, 10)
    door.is_draining = True
    request.cancel()
    assert_refused(await request, "draining")
    assert door.under_way == 0
    service.resume()


async def test_whoever_is_cancelled_otherwise_gets_no_answer(client, service) -> None:
    service.hang = True
    request = asyncio.create_task(client.post(URL, json=BODY))
    await asyncio.to_thread(service.started.wait, 10)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    service.resume()


async def test_where_others_have_servers_and_this_one_has_none_work_goes_there(service, settings, decoders) -> None:
    app = create_app(service, settings, decoders=decoders, door=Door(lambda: True))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test") as client:
        assert_refused(await client.post(URL, json=BODY), "not_ready")


class _Desk:
    def take_no_more(self) -> None: ...


class _Cells:
    is_drained = True

    def drain(self) -> None: ...
