"""``async: true`` and ``/v1/images/jobs`` as clients use them, and as nobody should."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from PIL import Image

from gateway.service.interfaces import DeadlineExceeded, NoCapacity, OutOfDeviceMemory, Place

URL, JOBS = "/v1/images/generations", "/v1/images/jobs"
KEYS = {"api_keys": {"alice": "sk-alice", "bob": "sk-bob"}}
PATIENCE = 120.0


@pytest.fixture
def client(live_with_jobs) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_with_jobs, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def sdk(live_with_jobs) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live_with_jobs}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def post(client: httpx.Client, key: str = "", **body: object) -> dict:
    answer = client.post(URL, json={"prompt": "a red circle", "async": True, **body}, headers=bearer(key))
    assert answer.status_code == 202, answer.text
    return answer.json()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def ended(client: httpx.Client, job_id: str, key: str = "") -> httpx.Response:
    return until(client, job_id, lambda job: job["completed_at"] is not None, key)


def until(client: httpx.Client, job_id: str, done: Callable[[dict], object], key: str = "") -> httpx.Response:
    limit = time.monotonic() + PATIENCE
    while True:
        answer = client.get(f"{JOBS}/{job_id}", headers=bearer(key))
        assert answer.status_code == 200, answer.text
        if done(answer.json()):
            return answer
        assert time.monotonic() < limit, answer.text


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    envelope = answer.json()["error"]
    return answer.status_code, envelope["code"], envelope["param"]


def test_a_job_ends_with_the_very_answer_of_the_call(client):
    body = {"seed": 5, "n": 2, "output_format": "webp", "quality": "low"}
    called = client.post(URL, json={"prompt": "a red circle", **body})
    job = post(client, **body)
    assert (job["object"], job["endpoint"], job["model"]) == ("image.job", URL, "tiny")
    assert job["status"] == "queued"
    assert job["deadline_at"] == job["created_at"] + 24 * 3600
    answer = ended(client, job["id"])
    done = answer.json()
    assert done["status"] == "completed"
    assert done["expires_at"] - done["completed_at"] in (24 * 3600, 24 * 3600 + 1)
    assert done["progress"] == {"step": 16, "steps": 16} or done["progress"] is None
    same = done["response"] | {"created": 0}
    assert same == called.json() | {"created": 0}
    for header in ("x-seed", "x-seeds", "server-timing", "x-predicted-wait-ms"):
        assert answer.headers[header] == called.headers[header]


def test_through_the_sdk(sdk):
    job = sdk.images.generate(model="tiny", prompt="a red circle", extra_body={"async": True, "seed": 1})
    assert job.status == "queued"
    limit = time.monotonic() + PATIENCE
    while (found := sdk.get(f"/images/jobs/{job.id}", cast_to=httpx.Response).json())["status"] != "completed":
        assert time.monotonic() < limit
    answer = openai.types.ImagesResponse.model_validate(found["response"])
    same = sdk.images.generate(model="tiny", prompt="a red circle", extra_body={"seed": 1})
    assert answer.data[0].b64_json == same.data[0].b64_json


def test_urls_open_without_a_key_until_the_job_is_deleted(client):
    job = post(client, response_format="url")
    (item,) = ended(client, job["id"]).json()["response"]["data"]
    picture = client.get(item["url"])
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (64, 64)
    assert job["id"].removeprefix("job_") not in item["url"], "whoever has the picture has not the job"
    gone = client.delete(f"{JOBS}/{job['id']}").json()
    assert gone == {"id": job["id"], "object": "image.job.deleted", "deleted": True}
    assert client.get(item["url"]).status_code == 404
    assert error(client.get(f"{JOBS}/{job['id']}")) == (404, "job_not_found", "id")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_edit_as_a_job(client, service, as_json):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    fields = {"prompt": "blue", "model": "editor", "seed": 3}
    if as_json:
        link = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
        body = {**fields, "async": True, "images": [{"image_url": link}]}
        answer = client.post("/v1/images/edits", json=body)
    else:
        files = {"image": ("a.png", picture.getvalue())}
        answer = client.post("/v1/images/edits", data={**fields, "async": "true"}, files=files)
    assert answer.status_code == 202, answer.text
    done = ended(client, answer.json()["id"]).json()
    assert done["endpoint"] == "/v1/images/edits"
    assert done["response"]["data"][0]["b64_json"]
    (request,) = service.requests
    sent = Image.open(io.BytesIO(request.uploads["image"]))
    assert (sent.size, sent.getpixel((0, 0))) == ((64, 64), (255, 0, 0))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"async": True, "stream": True}, "async"),
        ({"webhook_url": "https://example.org"}, "webhook_url"),
        ({"async": True, "webhook_url": "https://example.org"}, "webhook_url"),
        ({"async": "yes"}, "async"),
        ({"run_async": True}, "run_async"),
        ({"async": True, "n": 99}, "n"),
    ],
)
def test_what_makes_no_job(client, body, param):
    answer = client.post(URL, json={"prompt": "x", **body})
    assert error(answer)[0::2] == (400, param)


def test_without_a_database_there_are_no_jobs(live):
    with httpx.Client(base_url=live) as client:
        answer = client.post(URL, json={"prompt": "x", "async": True})
        assert error(answer) == (400, "unsupported_parameter", "async")


@pytest.mark.parametrize("params", ["x-request-timeout"])
def test_the_deadline_is_the_jobs_own(client, params):
    """SDKs send how long they wait for an answer, which is not how long a job may take."""
    headers = {"x-stainless-read-timeout": "5", "x-request-timeout": "3600"}
    answer = client.post(URL, json={"prompt": "x", "async": True}, headers=headers)
    job = answer.json()
    assert job["deadline_at"] == job["created_at"] + 3600


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_job_fails_as_its_call_would_have(client, service):
    service.error = OutOfDeviceMemory("too large")
    called = client.post(URL, json={"prompt": "x"})
    done = ended(client, post(client)["id"]).json()
    assert done["status"] == "failed"
    assert done["error"] == called.json()["error"]
    assert "response" not in done


def test_a_job_that_is_not_admitted_waits(client, service):
    service.error = NoCapacity("full", retry_after_seconds=1, predicted_wait_seconds=90)
    job = post(client)["id"]
    waits = until(client, job, lambda job: job["predicted_completion_at"]).json()
    assert waits["status"] == "queued"
    assert 80 < waits["predicted_completion_at"] - time.time() < 100
    service.error = None
    assert ended(client, job).json()["status"] == "completed"


def test_a_job_past_its_deadline_is_expired(client, service):
    service.error = DeadlineExceeded("late")
    done = ended(client, post(client)["id"]).json()
    assert (done["status"], done["error"]["code"]) == ("expired", "timeout")


def test_cancelling_a_job_stops_its_work_and_deleting_it_leaves_nothing(client, service):
    service.hang = service.is_admitted = True
    job = post(client)["id"]
    assert service.started.wait(PATIENCE)
    cancelled = client.delete(f"{JOBS}/{job}").json()
    assert (cancelled["status"], cancelled["object"]) == ("cancelled", "image.job")
    assert service.cancelled.wait(PATIENCE)
    assert client.get(f"{JOBS}/{job}").json()["status"] == "cancelled"
    assert client.delete(f"{JOBS}/{job}").json()["deleted"]
    assert client.get(f"{JOBS}/{job}").status_code == 404


@pytest.mark.parametrize("settings_changes", [{"storage_max_bytes": 64 << 20}])
def test_a_full_store_refuses_jobs(client, service):
    service.hang = True
    body = {"prompt": "x", "async": True, "size": "2048x2048", "n": 3}
    assert client.post(URL, json=body).status_code == 202
    full = client.post(URL, json=body)
    assert error(full) == (507, "storage_full", None)
    assert full.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("settings_changes", [{"api_keys": {"alice": "sk-alice"}}])
@pytest.mark.parametrize("path", [JOBS, "/v1/batches", "/v1/files"])
def test_lists_refuse_what_they_do_not_know(client, path):
    answer = client.get(path, params={"limit": 1, "colour": "red"}, headers=bearer("sk-alice"))
    assert error(answer) == (400, "unknown_parameter", "colour")
    assert client.get(path, params={"limit": 1}, headers=bearer("sk-alice")).status_code == 200


# --- tenants and lists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings_changes", [KEYS])
def test_a_job_belongs_to_its_tenant(client):
    job = post(client, "sk-alice")["id"]
    assert ended(client, job, "sk-alice").json()["status"] == "completed"
    for method in (client.get, client.delete):
        assert error(method(f"{JOBS}/{job}", headers=bearer("sk-bob"))) == (404, "job_not_found", "id")
        assert error(method(f"{JOBS}/{job}"))[0] == 401
    assert client.get(JOBS, headers=bearer("sk-bob")).json()["data"] == []


@pytest.mark.parametrize("settings_changes", [KEYS])
def test_pages(client, service):
    service.hang = True
    made = [post(client, "sk-alice")["id"] for _ in range(5)]

    def page(**query: object) -> tuple[list[str], bool]:
        listed = client.get(JOBS, headers=bearer("sk-alice"), params=query).json()
        ids = [job["id"] for job in listed["data"]]
        assert (listed["object"], listed["first_id"], listed["last_id"]) == ("list", ids[0], ids[-1])
        return ids, listed["has_more"]

    assert page() == (made[::-1], False)
    assert page(order="asc", limit=2) == (made[:2], True)
    assert page(order="asc", limit=3, after=made[1]) == (made[2:], False)
    assert page(limit=2, after=made[2]) == (made[1::-1], False)
    assert error(client.get(JOBS, headers=bearer("sk-alice"), params={"after": "job_x"})) == (
        404,
        "job_not_found",
        "after",
    )
    assert error(client.get(JOBS, headers=bearer("sk-alice"), params={"limit": 0}))[0] == 400


@pytest.mark.parametrize("job_id", ["job_x", "%00", "%ED%A0%80", "job_" + "0" * 32, "x" * 5000])
def test_ids_of_nothing(client, job_id):
    for method in (client.get, client.delete):
        assert error(method(f"{JOBS}/{job_id}")) == (404, "job_not_found", "id")


def test_without_keys_jobs_are_not_listed(client):
    post(client)
    assert error(client.get(JOBS)) == (403, "api_key_required", None)


def test_what_the_scheduler_foresees(client, service):
    service.hang = service.is_admitted = True
    job = post(client)["id"]
    assert service.started.wait(PATIENCE)
    for ahead, position in ((4, 5), (0, 1), (None, None)):
        service.places[f"{job}-1"] = Place(ahead, 100.0)
        found = client.get(f"{JOBS}/{job}").json()
        assert found["queue_position"] == position
        assert 95 < found["predicted_completion_at"] - time.time() <= 100


@pytest.mark.parametrize("settings_changes", [{"jobs_at_once": 1}])
def test_the_place_in_the_queue(client, service):
    service.hang = True
    post(client)
    assert service.started.wait(PATIENCE)
    headers = {"x-priority": "5"}
    second = post(client)
    urgent = client.post(URL, json={"prompt": "x", "async": True}, headers=headers).json()
    places = [client.get(f"{JOBS}/{job['id']}").json()["queue_position"] for job in (second, urgent)]
    assert places == [3, 1]
