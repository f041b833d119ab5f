"""Jobs and batches of callers with limits: what counts when, whose use it is, what a key must be allowed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import httpx
import msgspec
import pytest

from gateway.accounts.caller import Caller, Limits, Scope
from gateway.api.app import create_app
from gateway.api.job_answer import JobRequest
from gateway.database.database import Database
from gateway.database.usage import UsageRecord
from gateway.idempotency.once import open_once
from gateway.limits.budgets import Budgets
from gateway.limits.limiter import Limiter
from gateway.service.interfaces import OutOfDeviceMemory
from gateway.storage.storage import Storage
from tests.contract.metered import Keys, Metered, keys

URL, JOBS = "/v1/images/generations", "/v1/images/jobs"
PATIENCE = 30.0
Open = Callable[..., httpx.AsyncClient]


class Run:
    """The API with jobs, in-process; ``written`` are the records of use."""

    def __init__(self, metered: Metered) -> None:
        self.metered = metered
        self.written: list[UsageRecord] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.clients: list[httpx.AsyncClient] = []

    def client(self, app, key: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"}
        transport = httpx.ASGITransport(app)
        self.clients.append(httpx.AsyncClient(transport=transport, base_url="http://gateway.test", headers=headers))
        return self.clients[-1]


@pytest.fixture
async def run(metered, monkeypatch) -> AsyncIterator[Run]:
    run = Run(metered)
    monkeypatch.setattr(metered.usage, "write", lambda batch: asyncio.sleep(0, run.written.extend(batch)))
    yield run
    for client in run.clients:
        await client.aclose()


@pytest.fixture
async def open_client(run, service, settings, tmp_path) -> AsyncIterator[Open]:
    database = Database(settings.model_copy(update={"state_dir": tmp_path}))
    await database.open()

    def connect(ring: Keys, key: str = "alice", **changes: object) -> httpx.AsyncClient:
        storage = Storage(settings)
        once = open_once(settings, database, storage.objects, "gateway-1")
        budgets = Budgets(run.metered.usage, run.metered.meter)
        run.metered.meter.on_written = budgets.written
        parts = {"storage": storage, "once": once, "database": database, "limiter": Limiter(budgets=budgets)}
        changed = settings.model_copy(update=changes)
        app = create_app(service, changed, keys=ring, meter=run.metered.meter, **parts)
        run.tasks.append(asyncio.create_task(app.state.api.desk.run()))
        return run.client(app, key)

    yield connect
    for task in run.tasks:
        assert not task.done(), task
        task.cancel()
    await asyncio.wait(run.tasks)
    await database.close()


async def ended(client: httpx.AsyncClient, path: str) -> dict:
    async with asyncio.timeout(PATIENCE):
        while True:
            found = (await client.get(path)).json()
            if found["status"] in ("completed", "failed", "cancelled", "expired"):
                return found
            await asyncio.sleep(0.01)


async def batch(client: httpx.AsyncClient, *bodies: dict) -> httpx.Response:
    lines = ({"custom_id": str(n), "method": "POST", "url": URL, "body": body} for n, body in enumerate(bodies))
    data = "\n".join(map(json.dumps, lines)).encode()
    file = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", data)})
    body = {"input_file_id": file.json()["id"], "endpoint": URL, "completion_window": "24h"}
    return await client.post("/v1/batches", json=body)


def job(**body: object) -> dict:
    return {"prompt": "x", "async": True, **body}


async def test_a_job_counts_when_it_is_posted_and_is_measured_when_it_is_done(open_client, run):
    client = open_client(keys(images_per_minute=3))
    posted = await client.post(URL, json=job(n=2))
    assert posted.headers["x-ratelimit-remaining-images"] == "1"
    done = await ended(client, f"{JOBS}/{posted.json()['id']}")
    assert done["status"] == "completed"
    refused = await client.post(URL, json=job(n=2))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    await run.metered.meter.write()
    made, limited = sorted(run.written, key=lambda record: record.status)
    assert (made.tenant, made.key, made.model, made.endpoint) == ("acme", "key-a", "tiny", "generations")
    assert (made.status, made.images, made.dit_seconds) == (200, 2, 1.0)
    assert made.id == f"{posted.json()['id']}-1"
    assert (limited.status, limited.images) == (429, 0)


async def test_a_job_that_fails_is_measured_once(open_client, run, service):
    service.error = OutOfDeviceMemory("")
    client = open_client(keys())
    posted = await client.post(URL, json=job())
    await ended(client, f"{JOBS}/{posted.json()['id']}")
    await run.metered.meter.write()
    assert [(record.status, record.code, record.images) for record in run.written] == [(500, "out_of_memory", 0)]


async def test_a_job_that_cannot_be_read_fails_alone(open_client, monkeypatch):
    """As after a downgrade."""
    client = open_client(keys())
    monkeypatch.setattr(JobRequest, "of", lambda _: msgspec.json.decode(b"{}", type=JobRequest))
    broken = (await client.post(URL, json=job())).json()["id"]
    assert (await ended(client, f"{JOBS}/{broken}"))["error"]["code"] == "server_error"
    monkeypatch.undo()
    sound = (await client.post(URL, json=job())).json()["id"]
    assert (await ended(client, f"{JOBS}/{sound}"))["status"] == "completed"


async def test_the_lines_of_a_batch_are_their_callers_use(open_client, run):
    client = open_client(keys(requests_per_minute=1))
    started = await batch(client, {"prompt": "x"}, {"prompt": "y", "n": 2}, {"prompt": ""})
    await ended(client, f"/v1/batches/{started.json()['id']}")
    refused = await batch(client, {"prompt": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    await run.metered.meter.write()
    lines = [record for record in run.written if record.endpoint == "generations"]
    assert sorted((record.status, record.images) for record in lines) == [(200, 1), (200, 2), (400, 0)]
    assert {(record.tenant, record.key) for record in lines} == {("acme", "key-a")}


async def test_lines_of_a_batch_end_with_the_budget(open_client):
    client = open_client(keys(device_seconds_per_month=1.5), batch_lines_at_once=1)
    started = await batch(client, *[{"prompt": "x", "n": 2}] * 3)  # a second each
    done = await ended(client, f"/v1/batches/{started.json()['id']}")
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    (refused,) = (await client.get(f"/v1/files/{done['error_file_id']}/content")).text.splitlines()
    answer = json.loads(refused)["response"]
    assert (answer["status_code"], answer["body"]["error"]["code"]) == (429, "insufficient_quota")


async def test_a_line_may_use_the_models_that_its_key_may(open_client, run):
    ring = keys()
    ring.callers["alice"] = replace(ring.callers["alice"], models=frozenset({"tiny"}))
    client = open_client(ring)
    started = await batch(client, {"prompt": "x", "model": "tiny"}, {"prompt": "x", "model": "org/plain"})
    done = await ended(client, f"/v1/batches/{started.json()['id']}")
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    errors = await client.get(f"/v1/files/{done['error_file_id']}/content")
    assert errors.json()["response"]["body"]["error"]["code"] == "model_not_allowed"


async def test_a_key_of_idempotency_makes_one_job_and_one_batch(open_client, run, service):
    client = open_client(keys())
    headers = {"idempotency-key": "once"}
    first, second = [await client.post(URL, json=job(n=2), headers=headers) for _ in range(2)]
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    await ended(client, f"{JOBS}/{first.json()['id']}")
    other = await client.post(URL, json=job(n=1), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert len(service.requests) == 1
    await run.metered.meter.write()
    assert [record.images for record in run.written if record.status == 200] == [2]
    file = (await batch(client, {"prompt": "x"})).json()["input_file_id"]
    body = {"input_file_id": file, "endpoint": URL, "completion_window": "24h"}
    headers = {"idempotency-key": "another"}
    started = [await client.post("/v1/batches", json=body, headers=headers) for _ in range(2)]
    assert started[0].json()["id"] == started[1].json()["id"]


ALL = frozenset(Scope)


@pytest.mark.parametrize(
    ("scopes", "method", "path", "status"),
    [
        (ALL, "POST", URL, 202),
        (ALL - {Scope.JOBS}, "POST", URL, 403),
        (ALL - {Scope.GENERATE}, "POST", URL, 403),
        (ALL - {Scope.JOBS}, "GET", JOBS, 403),
        ({Scope.JOBS}, "GET", JOBS, 200),
        (ALL - {Scope.JOBS}, "GET", f"{JOBS}/job_x", 403),
        (ALL - {Scope.JOBS}, "DELETE", f"{JOBS}/job_x", 403),
        ({Scope.JOBS}, "DELETE", f"{JOBS}/job_x", 404),
        (ALL - {Scope.JOBS}, "GET", "/v1/batches", 403),
        ({Scope.JOBS}, "GET", "/v1/batches", 200),
        (ALL - {Scope.JOBS}, "POST", "/v1/batches/batch_x/cancel", 403),
        (ALL - {Scope.GENERATE}, "POST", "/v1/batches", 403),
        (ALL, "POST", "/v1/batches", 404),
    ],
)
async def test_what_a_key_must_be_allowed(open_client, scopes, method, path, status):
    client = open_client(Keys(alice=Caller("acme", "key-a", frozenset(scopes), limits=Limits())))
    bodies = {URL: job(), "/v1/batches": {"input_file_id": "x", "endpoint": URL, "completion_window": "24h"}}
    answer = await client.request(method, path, json=bodies.get(path))
    assert answer.status_code == status, answer.text
    if status == 403:
        assert answer.json()["error"]["code"] == "missing_scope"
