"""What is recorded of requests, and who may read it."""

from __future__ import annotations

import asyncio
import csv
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from gateway.api.app import create_app
from gateway.database.errors import DatabaseError, Trouble
from gateway.service.interfaces import Finished, GenerationFailed, NoCapacity, OutOfDeviceMemory, Took
from tests.contract.metered import ADMIN, keys

URL = "/v1/images/generations"
BODY = {"prompt": "x", "model": "tiny"}


def today() -> str:
    return str(datetime.now(UTC).date())


@pytest.fixture
def written(metered, monkeypatch):
    """Records, as they reach the database."""
    records = []
    monkeypatch.setattr(metered.usage, "write", lambda batch: asyncio.sleep(0, records.extend(batch)))
    return records


async def test_one_record_of_each_request_whatever_becomes_of_it(metered, service, written):
    client = metered.client(keys(requests_per_minute=7))
    answers = [await client.post(URL, json=BODY | {"n": 2})]
    answers.append(await client.post(URL, json={"prompt": ""}))
    service.late_error = GenerationFailed("every attempt failed")
    answers.append(await client.post(URL, json=BODY | {"n": 2, "stream": True}))
    service.late_error, service.error = None, NoCapacity("full", retry_after_seconds=1)
    answers.append(await client.post(URL, json=BODY))
    service.error = OutOfDeviceMemory("")
    answers.append(await client.post(URL, json=BODY | {"stream": True}))
    service.error = RuntimeError("boom")
    answers.append(await client.post(URL, json=BODY))
    answers.append(await client.post("/v1/images/edits", files={"image": b""}))
    answers.append(await client.post(URL, json=BODY))
    await client.get("/v1/models")
    await client.post(URL, json=BODY, headers={"authorization": "Bearer wrong"})
    await metered.meter.write()
    assert [record.id for record in written] == [answer.headers["x-request-id"] for answer in answers]
    assert [(record.status, record.code, record.images) for record in written] == [
        (200, "", 2),
        (400, "string_below_min_length", 0),
        (200, "server_error", 1),
        (503, "server_is_overloaded", 0),
        (500, "out_of_memory", 0),
        (500, "server_error", 0),
        (400, "missing_required_parameter", 0),
        (429, "rate_limit_exceeded", 0),
    ]
    assert {(record.tenant, record.key) for record in written} == {("acme", "key-a")}
    assert [record.model for record in written] == ["tiny", "", "tiny", "tiny", "tiny", "tiny", "", ""]
    assert [record.endpoint for record in written] == ["generations"] * 6 + ["edits", "generations"]
    whole = written[0]
    assert (whole.encoder_seconds, whole.dit_seconds, whole.decoder_seconds) == (0.003, 1.0, 0.0)


async def test_a_client_that_leaves_is_charged_what_was_computed(metered, service, written):
    client = metered.client(keys())
    hang = asyncio.Event()

    async def generate(request, listener):
        listener(Took("encoder", 0.25))
        hang.set()
        try:
            await asyncio.Event().wait()
        finally:
            listener(Took("dit", 3.0))

    service.generate = generate
    leaving = asyncio.create_task(client.post(URL, json=BODY))
    await hang.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    await metered.meter.write()
    (record,) = written
    assert (record.status, record.images) == (499, 0)
    assert (record.encoder_seconds, record.dit_seconds) == (0.25, 3.0)


async def test_what_each_stage_took_is_counted_as_its_own(metered, service):
    client = metered.client(keys())
    took = {"enhancer": 0.5, "encoder": 0.25, "dit": 3.0, "decoder": 0.125, "upscaler": 2.0}

    async def generate(request, listener):
        for role, seconds in took.items():
            listener(Took(role, seconds))
        return Finished((b"picture",), ())

    service.generate = generate
    answer = await client.post(URL, json=BODY, headers={"authorization": "Bearer alice"})
    assert answer.status_code == 200
    (row,) = await metered.rows(client)
    assert {role: row[f"{role}_seconds"] for role in took} == took
    assert row["device_seconds"] == sum(took.values())


async def test_operators_see_every_tenant_by_day(metered):
    client = metered.client(keys())
    for key in ("alice", "alice", "bob", "carol"):
        await client.post(URL, json=BODY, headers={"authorization": f"Bearer {key}"})
    acme = {"day": today(), "tenant": "acme", "requests": 3, "failed": 0, "images": 3}
    acme |= {"device_seconds": 1.509, "encoder_seconds": 0.009, "dit_seconds": 1.5, "decoder_seconds": 0.0}
    acme |= {"enhancer_seconds": 0.0, "upscaler_seconds": 0.0}
    rows = await metered.rows(client)
    assert rows[0] == acme
    assert [row["tenant"] for row in rows] == ["acme", "other"]
    assert [row["requests"] for row in await metered.rows(client, "?tenant=acme&key=key-b")] == [1]
    assert [row["tenant"] for row in await metered.rows(client, "?model=tiny&tenant=other")] == ["other"]
    yesterday = str(datetime.now(UTC).date() - timedelta(days=1))
    assert await metered.rows(client, f"?end={yesterday}") == []
    assert len(await metered.rows(client, f"?start={yesterday}&end={today()}")) == 2
    answer = await client.get("/admin/usage?format=csv", headers={"authorization": f"Bearer {ADMIN}"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    table = list(csv.DictReader(answer.text.splitlines()))
    assert table[0] == {name: str(value) for name, value in acme.items()}


async def test_tenants_see_their_own(metered):
    client = metered.client(keys())
    for key in ("alice", "bob", "carol"):
        await client.post(URL, json=BODY, headers={"authorization": f"Bearer {key}"})
    await metered.meter.write()
    for query, requests in (
        *(("", [2]), ("?key=key-b", [1]), ("?key=key-c", []), ("?model=other", [])),
        *(("?end=0001-01-02", []), ("?start=0001-01-01&end=9999-12-31", [2])),
    ):
        answer = await client.get(f"/v1/usage{query}")
        assert [row["requests"] for row in answer.json()["data"]] == requests
        assert {row["tenant"] for row in answer.json()["data"]} <= {"acme"}
    refused = await client.get("/v1/usage?tenant=other")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tenant")
    refused = await client.get("/v1/usage", headers={"authorization": "Bearer carol"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    assert (await client.get("/v1/usage", headers={"authorization": "Bearer wrong"})).status_code == 401


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start=yesterday", "start"),
        ("end=2026-02-30", "end"),
        ("format=xml", "format"),
        ("days=3", "days"),
        ("start=2026-02-02&end=2026-02-01", "start"),
        ("model=%00", "model"),
    ],
)
async def test_a_bad_question_is_refused(metered, query, param):
    client = metered.client(keys())
    for url, key in (("/v1/usage", "alice"), ("/admin/usage", ADMIN)):
        answer = await client.get(f"{url}?{query}", headers={"authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_keys_are_no_admin_keys_nor_the_other_way_round(metered):
    client = metered.client(keys())
    assert (await client.get("/admin/usage")).status_code == 401
    assert (await client.get("/v1/usage", headers={"authorization": f"Bearer {ADMIN}"})).status_code == 401


async def test_without_keys_nobody_reads_what_all_used(metered):
    answer = await metered.client().get("/v1/usage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "api_key_required")


async def test_without_a_database_requests_go_on_and_reports_do_not(metered, service, monkeypatch):
    client = metered.client(keys(device_seconds_per_month=100.0))

    async def fail(*_):
        raise DatabaseError(Trouble.LOST, "")

    for name in ("write", "spent", "sums"):
        monkeypatch.setattr(metered.usage, name, fail)
    assert (await client.post(URL, json=BODY)).status_code == 200
    await metered.meter.write()
    answer = await client.get("/v1/usage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")


async def test_without_a_meter_there_are_no_reports(service, settings):
    app = create_app(service, settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway.test") as client:
        assert (await client.get("/v1/usage")).status_code == 404


async def test_use_is_told_for_each_key_where_asked_for(metered):
    client = metered.client(keys())
    for key in ("alice", "alice", "bob", "carol"):
        await client.post(URL, json=BODY, headers={"authorization": f"Bearer {key}"})
    rows = await metered.rows(client, "?by=key")
    assert [(row["tenant"], row["key"], row["requests"]) for row in rows] == [
        ("acme", "key-a", 2),
        ("acme", "key-b", 1),
        ("other", "key-c", 1),
    ]
    own = (await client.get("/v1/usage?by=key")).json()["data"]
    assert [(row["key"], row["images"]) for row in own] == [("key-a", 2), ("key-b", 1)]
    table = (await client.get("/v1/usage?by=key&format=csv")).text.splitlines()
    assert table[0].endswith(",upscaler_seconds,key")
    assert (await client.get("/v1/usage?by=model")).json()["error"]["param"] == "by"


async def test_what_is_left_of_each_limit(metered):
    limits = {"requests_per_minute": 5, "images_per_minute": 8, "concurrent_requests": 2}
    client = metered.client(keys(**limits, device_seconds_per_month=10.0))
    before = (await client.get("/v1/limits")).json()["limits"]
    assert {name: (each["limit"], each["remaining"]) for name, each in before.items()} == {
        "requests_per_minute": (5, 5),
        "images_per_minute": (8, 8),
        "concurrent_requests": (2, 2),
        "device_seconds_per_month": (10.0, 10.0),
    }
    await client.post(URL, json=BODY | {"n": 3})
    after = (await client.get("/v1/limits")).json()["limits"]
    again = (await client.get("/v1/limits")).json()["limits"]
    assert [each["remaining"] for each in again.values()] == [each["remaining"] for each in after.values()]
    assert after["requests_per_minute"]["remaining"] == 4
    assert after["images_per_minute"]["remaining"] == 5
    assert 0 < after["requests_per_minute"]["reset_seconds"] <= 60
    assert after["concurrent_requests"]["remaining"] == 2
    assert after["device_seconds_per_month"]["remaining"] < 10.0
    assert 0 < after["device_seconds_per_month"]["reset_seconds"] <= 31 * 86_400


async def test_a_request_under_way_is_one_fewer_at_a_time(metered, service):
    client = metered.client(keys(concurrent_requests=2))
    begun, end = asyncio.Event(), asyncio.Event()

    async def generate(request, listener):
        begun.set()
        await end.wait()
        raise GenerationFailed("over")

    service.generate = generate
    request = asyncio.create_task(client.post(URL, json=BODY))
    await begun.wait()
    assert (await client.get("/v1/limits")).json()["limits"]["concurrent_requests"]["remaining"] == 1
    end.set()
    await request
    assert (await client.get("/v1/limits")).json()["limits"]["concurrent_requests"]["remaining"] == 2


async def test_limits_are_told_to_whoever_has_a_key(metered):
    client = metered.client(keys())
    assert (await client.get("/v1/limits")).json() == {"limits": {}}
    assert (await client.get("/v1/limits", headers={"authorization": "Bearer wrong"})).status_code == 401
