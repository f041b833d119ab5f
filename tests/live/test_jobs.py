"""Jobs and batches on real stage servers, by OpenAI's client and by plain requests where it has no call for them."""

from __future__ import annotations

import base64
import io
import json

import httpx
import openai
import pytest
from PIL import Image

from tests.live.conftest import CRASH_SEED, SIDE, arguments, until
from tests.picture_service import MODEL

pytestmark = pytest.mark.services

WHOLE = {"strength": 1.0}
"""All of the few steps."""
GENERATIONS, EDITS, JOBS = "/v1/images/generations", "/v1/images/edits", "/v1/images/jobs"
OVER = ("completed", "failed", "cancelled", "expired")


def posted(http: httpx.Client, **body: object) -> str:
    answer = http.post(GENERATIONS, json={"prompt": "a red circle", "async": True, **body})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"{JOBS}/{answer.json()['id']}"
    return answer.json()["id"]


def ended_job(http: httpx.Client, job: str) -> dict:
    def look() -> dict | None:
        found = http.get(f"{JOBS}/{job}").json()
        return found if found["status"] in OVER else None

    return until(look, f"{job} ends")


def ended_batch(sdk: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    def look() -> openai.types.Batch | None:
        found = sdk.batches.retrieve(batch.id)
        return found if found.status in OVER else None

    return until(look, f"{batch.id} ends")


def started(sdk: openai.OpenAI, endpoint: str, **bodies: dict) -> openai.types.Batch:
    """A batch of these requests, by ``custom_id``."""
    lines = ({"custom_id": name, "method": "POST", "url": endpoint, "body": body} for name, body in bodies.items())
    file = sdk.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    return sdk.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def lines_of(sdk: openai.OpenAI, file_id: str) -> dict[str, dict]:
    lines = map(json.loads, sdk.files.content(file_id).text.splitlines())
    return {line["custom_id"]: line["response"] for line in lines}


def square(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_job_makes_the_very_picture_of_the_call(http, sdk):
    job = ended_job(http, posted(http, seed=5, n=2))
    assert (job["status"], job["model"]) == ("completed", MODEL)
    called = sdk.images.generate(**arguments(seed=5, n=2))
    assert [item["b64_json"] for item in job["response"]["data"]] == [item.b64_json for item in called.data]
    assert http.delete(f"{JOBS}/{job['id']}").json()["deleted"]
    assert http.get(f"{JOBS}/{job['id']}").status_code == 404


def test_a_job_by_openais_client(sdk, http):
    """It knows of no jobs: the raw answer is to be read."""
    answer = sdk.images.with_raw_response.generate(**arguments(**{"seed": 6, "async": True}))
    assert answer.status_code == 202
    job = json.loads(answer.text)
    assert (job["object"], job["status"]) == ("image.job", "queued")
    assert job["id"] in [each["id"] for each in http.get(JOBS, params={"limit": 100}).json()["data"]]
    picture = base64.b64decode(ended_job(http, job["id"])["response"]["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(picture)).size == (SIDE, SIDE)


def test_an_edit_as_a_job(http, sdk):
    answer = http.post(
        EDITS,
        data={"prompt": "a blue circle", "seed": "7", "async": "true", "strength": "1"},
        files={"image": ("red.png", square("red"), "image/png")},
    )
    assert answer.status_code == 202, answer.text
    job = ended_job(http, answer.json()["id"])
    called = sdk.images.edit(image=square("red"), prompt="a blue circle", extra_body={"seed": 7, **WHOLE})
    assert job["response"]["data"][0]["b64_json"] == called.data[0].b64_json


def test_a_job_that_waits_tells_so_and_can_be_cancelled(http, service):
    with service.processes["dit"].frozen():
        job = posted(http)
        found = http.get(f"{JOBS}/{job}").json()
        assert found["status"] in ("queued", "in_progress")
        assert http.delete(f"{JOBS}/{job}").json()["status"] == "cancelled"
    assert ended_job(http, job)["status"] == "cancelled"


def test_a_job_that_crashes_fails_as_its_call_would_have(http):
    job = ended_job(http, posted(http, seed=CRASH_SEED))
    assert (job["status"], job["error"]["code"]) == ("failed", "server_error")
    assert "secret" not in json.dumps(job)


def test_a_batch_makes_the_very_pictures_of_its_calls(sdk):
    bodies = {f"seed {seed}": {"prompt": "a red circle", "seed": seed} for seed in range(4)}
    wrong = {"size": {"prompt": "x", "size": "63x63"}, "model": {"prompt": "x", "model": "nobody"}}
    batch = started(sdk, GENERATIONS, **bodies, **wrong)
    assert batch.id in [each.id for each in sdk.batches.list()]
    done = ended_batch(sdk, batch)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 4, 2)
    output = lines_of(sdk, done.output_file_id)
    for seed in range(4):
        called = sdk.images.generate(**arguments(seed=seed))
        assert output[f"seed {seed}"]["body"]["data"][0]["b64_json"] == called.data[0].b64_json
    errors = lines_of(sdk, done.error_file_id)
    assert errors["size"]["body"]["error"]["param"] == "size"
    assert errors["model"]["body"]["error"]["code"] == "model_not_found"
    assert MODEL in errors["model"]["body"]["error"]["message"]


def test_a_batch_of_edits(sdk):
    file = sdk.files.create(file=("red.png", square("red")), purpose="vision")
    link = f"data:image/png;base64,{base64.b64encode(square('red')).decode()}"
    same = {"prompt": "a blue circle", "seed": 8, **WHOLE}
    batch = started(
        sdk,
        EDITS,
        file={**same, "images": [{"file_id": file.id}]},
        link={**same, "images": [{"image_url": link}]},
    )
    output = lines_of(sdk, ended_batch(sdk, batch).output_file_id)
    pictures = {name: line["body"]["data"][0]["b64_json"] for name, line in output.items()}
    assert pictures["file"] == pictures["link"]


def test_a_batch_that_is_cancelled(sdk, service):
    with service.processes["dit"].frozen():
        batch = started(sdk, GENERATIONS, **{f"line {number}": {"prompt": "x"} for number in range(30)})
        until(lambda: sdk.batches.retrieve(batch.id).status == "in_progress", "the batch is read")
        assert sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended_batch(sdk, batch)
    assert (done.status, done.request_counts.total) == ("cancelled", 30)
    assert done.request_counts.completed + done.request_counts.failed == 30
