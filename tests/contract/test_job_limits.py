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
from gateway.service.interfaces import NoCapacity, OutOfDeviceMemory
from gateway.storage.storage import Storage
from tests.contract.metered import Keys, Metered, keys
from tests.databases import prepared

URL, JOBS = "/v1/images/generations", "/v1/images/jobs"
PATIENCE = 120.0
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
    database = Database(settings.model_copy(update={"state_dir": prepared(tmp_path)}))
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
    await asyncio.gather(*run.tasks, return_exceptions=True)
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
    assert made.id == posted.json()["id"], "the job's, whichever attempt ended it"
    assert (limited.status, limited.images) == (429, 0)


async def test_a_job_whose_budget_is_used_up_by_the_time_it_runs_fails(open_client, run, service):
    """Both were posted while all of it was left."""
    service.hang = True
    client = open_client(keys(device_seconds_per_month=0.4), jobs_at_once=1)  # a picture takes 0.5
    first, second = [(await client.post(URL, json=job())).json()["id"] for _ in range(2)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(service.started.wait)
    service.hang = False
    service.resume()
    assert (await ended(client, f"{JOBS}/{first}"))["status"] == "completed"
    refused = await ended(client, f"{JOBS}/{second}")
    assert (refused["status"], refused["error"]["code"]) == ("failed", "insufficient_quota")
    assert len(service.requests) == 1


async def test_an_attempt_that_was_postponed_is_charged_and_is_no_request(open_client, run, service, metered):
    """The last picture's device was lost and no other is there: it has computed all the same."""
    service.late_error = NoCapacity("no server", retry_after_seconds=0.01)
    client = open_client(keys())
    posted = (await client.post(URL, json=job(n=2))).json()["id"]
    async with asyncio.timeout(PATIENCE):
        while len(service.requests) < 2:  # noqa: ASYNC110 # one that fails tells of no event
            await asyncio.sleep(0.01)
    service.late_error = None
    assert (await ended(client, f"{JOBS}/{posted}"))["status"] == "completed"
    await metered.meter.write()
    *postponed, last = sorted(run.written, key=lambda record: record.status)
    assert (last.status, last.images, last.dit_seconds) == (200, 2, 1.0)
    assert {(record.status, record.code, record.images) for record in postponed} == {(0, "", 0)}
    assert [record.dit_seconds for record in postponed] == [1.0] * len(postponed)
    assert len({record.id for record in run.written}) == len(run.written)


async def test_an_attempt_that_the_gateways_end_interrupts_is_no_failed_request(open_client, run, service):
    service.hang = True
    client = open_client(keys())
    await client.post(URL, json=job())
    await asyncio.to_thread(service.started.wait)
    ending = run.tasks.pop()
    ending.cancel()
    await asyncio.wait([ending])
    await run.metered.meter.write()
    assert run.written == []


async def test_a_job_that_its_caller_cancels_is_a_request(open_client, run, service):
    service.hang = True
    client = open_client(keys())
    posted = (await client.post(URL, json=job())).json()["id"]
    await asyncio.to_thread(service.started.wait)
    await client.delete(f"{JOBS}/{posted}")
    await asyncio.to_thread(service.cancelled.wait)
    await run.metered.meter.write()
    assert [(record.status, record.code) for record in run.written] == [(499, "cancelled")]


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
