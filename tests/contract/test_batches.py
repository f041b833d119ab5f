"""``/v1/batches`` through OpenAI's SDK, and as nobody should use it."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from PIL import Image

from gateway.service.interfaces import BACKGROUND, OutOfDeviceMemory

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
PATIENCE = 120.0
OVER = ("completed", "failed", "cancelled", "expired")


@pytest.fixture
def sdk(live_with_jobs) -> Iterator[openai.OpenAI]:
    """Strict about responses."""
    with openai.OpenAI(
        base_url=f"{live_with_jobs}/v1", api_key="sk-alice", max_retries=0, _strict_response_validation=True
    ) as sdk:
        yield sdk


def line(custom_id: str, url: str = GENERATIONS, **body: object) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": custom_id, "seed": 1, **body}}


def upload(sdk: openai.OpenAI, *lines: dict | bytes, purpose: str = "batch") -> str:
    data = b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)
    return sdk.files.create(file=("in.jsonl", data), purpose=purpose).id


def start(sdk: openai.OpenAI, *lines: dict | bytes, endpoint: str = GENERATIONS, **more: object) -> openai.types.Batch:
    file = upload(sdk, *lines)
    return sdk.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h", **more)


def ended(sdk: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    limit = time.monotonic() + PATIENCE
    while (batch := sdk.batches.retrieve(batch_id)).status not in OVER:
        assert time.monotonic() < limit, batch
        time.sleep(0.05)
    return batch


def read(sdk: openai.OpenAI, file_id: str) -> list[dict]:
    return [json.loads(each) for each in sdk.files.content(file_id).text.splitlines()]


def test_a_batch_from_its_file_to_its_output(sdk, service):
    batch = start(
        sdk,
        line("first", n=2),
        line("wrong", size="7x7"),
        b"",
        line("third", output_format="jpeg", model="dall-e-3"),
        metadata={"night": "1"},
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (batch.status, batch.metadata, batch.endpoint) == ("validating", {"night": "1"}, GENERATIONS)
    assert batch.expires_at == batch.created_at + 24 * 3600
    done = ended(sdk, batch.id)
    assert done.status == "completed"
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    first, third = read(sdk, done.output_file_id)
    assert [each["custom_id"] for each in (first, third)] == ["first", "third"]
    assert first["response"]["status_code"] == 200
    assert first["error"] is None
    called = sdk.images.generate(prompt="first", n=2, extra_body={"seed": 1})
    assert [item["b64_json"] for item in first["response"]["body"]["data"]] == [item.b64_json for item in called.data]
    picture = base64.b64decode(third["response"]["body"]["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(picture)).format == "JPEG", "aliases that default to urls answer with the picture"
    (wrong,) = read(sdk, done.error_file_id)
    assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("wrong", 400)
    assert wrong["response"]["body"]["error"]["param"] == "size"
    file = sdk.files.retrieve(done.output_file_id)
    assert (file.purpose, file.expires_at) == ("batch_output", file.created_at + 7200)
    assert file.bytes == len(sdk.files.content(file.id).read())
    assert {request.tenant for request in service.requests[:-1]} == {BACKGROUND}


def test_a_misspelt_model_fails_at_once_and_names_those_there_are(sdk):
    batch = start(sdk, line("good"), line("bad", model="tyni"))
    done = ended(sdk, batch.id)
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
    (bad,) = read(sdk, done.error_file_id)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 404)
    error = bad["response"]["body"]["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"].startswith("The model 'tyni' does not exist. There are: tiny, org/plain, editor,")


def test_a_file_that_begins_with_a_byte_order_mark(sdk):
    done = ended(sdk, start(sdk, b"\xef\xbb\xbf" + json.dumps(line("first")).encode(), line("second")).id)
    assert (done.status, done.request_counts.completed) == ("completed", 2)


def test_a_model_whose_servers_are_away_is_waited_for(sdk, service):
    """It was served when the batch was read."""
    service.hang = True
    everything = service.served
    batch = start(sdk, *(line(f"line {number}", model="org/plain") for number in range(20)))
    limit = time.monotonic() + PATIENCE
    while len(service.requests) < 16:
        assert time.monotonic() < limit
        time.sleep(0.01)
    service.served = everything[:1]
    service.hang = False
    service.resume()
    while (counts := sdk.batches.retrieve(batch.id).request_counts).completed < 16:
        assert time.monotonic() < limit, counts
        time.sleep(0.05)
    assert counts.failed == 0
    assert sdk.batches.retrieve(batch.id).status == "in_progress"


def test_a_batch_of_edits(sdk, service):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    file = sdk.files.create(file=("a.png", picture.getvalue()), purpose="vision").id
    link = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    batch = start(
        sdk,
        line("file", EDITS, model="editor", images=[{"file_id": file}]),
        line("link", EDITS, model="editor", images=[{"image_url": link}]),
        line("none", EDITS, model="editor", images=[{"file_id": "file-0"}]),
        endpoint=EDITS,
    )
    done = ended(sdk, batch.id)
    assert [each["custom_id"] for each in read(sdk, done.output_file_id)] == ["file", "link"]
    (none,) = read(sdk, done.error_file_id)
    assert none["response"]["body"]["error"]["code"] == "file_not_found"
    assert len({request.uploads["image"] for request in service.requests}) == 1


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([b"{"], "invalid_json_line", 1),
        ([line("a"), b'{"custom_id": "b"}'], "invalid_request", 2),
        ([line("a"), line("a")], "duplicate_custom_id", 2),
        ([line("a", EDITS)], "invalid_url", 1),
        ([line("a") | {"method": "GET"}], "invalid_method", 1),
        ([line("")], "invalid_custom_id", 1),
        ([line("a\0")], "invalid_custom_id", 1),
        ([b'{"custom_id": "\\ud800"}'], "invalid_json_line", 1),
        ([b"\n\n"], "empty_file", None),
        ([b"\xff\xfe"], "invalid_json_line", 1),
    ],
)
def test_a_file_that_is_no_batch(sdk, service, lines, code, number):
    done = ended(sdk, start(sdk, *lines).id)
    assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
    first = done.errors.data[0]
    assert (first.code, first.line) == (code, number)
    assert done.failed_at >= done.created_at
    assert service.requests == []


def test_cancelling_a_batch(sdk, service):
    service.hang = True
    batch = start(sdk, *(line(f"line {number}") for number in range(40)))
    assert service.started.wait(PATIENCE)
    assert sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(sdk, batch.id)
    assert done.status == "cancelled"
    assert (done.request_counts.completed, done.request_counts.failed) == (0, 40)
    assert read(sdk, done.error_file_id)[0]["error"]["code"] == "batch_cancelled"
    assert service.cancelled.wait(PATIENCE)
    with pytest.raises(openai.ConflictError) as refused:
        sdk.batches.cancel(batch.id)
    assert refused.value.code == "batch_not_cancellable"


@pytest.mark.parametrize("settings_changes", [{"batch_lines_at_once": 3}])
def test_a_few_lines_at_a_time(sdk, service):
    service.hang = True
    batch = start(sdk, *(line(f"line {number}") for number in range(9)))
    limit = time.monotonic() + PATIENCE
    while len(service.requests) < 3:
        assert time.monotonic() < limit
    time.sleep(0)
    assert sdk.batches.retrieve(batch.id).status == "in_progress"
    assert len(service.requests) == 3


def test_what_fails_as_its_call_would_have(sdk, service):
    service.error = OutOfDeviceMemory("too large")
    done = ended(sdk, start(sdk, line("a"), line("b", stream=True), line("c", response_format="url")).id)
    codes = [each["response"]["body"]["error"]["code"] for each in read(sdk, done.error_file_id)]
    assert codes == ["out_of_memory", "unsupported_value", "unsupported_value"]
    assert done.output_file_id is None


@pytest.mark.parametrize("settings_changes", [{"api_keys": {"alice": "sk-alice", "bob": "sk-bob"}}])
def test_a_batch_belongs_to_its_tenant(sdk, live_with_jobs):
    made = [start(sdk, line("a")).id for _ in range(3)]
    assert [batch.id for batch in sdk.batches.list(limit=2)] == made[::-1]
    with openai.OpenAI(base_url=f"{live_with_jobs}/v1", api_key="sk-bob", max_retries=0) as bob:
        assert bob.batches.list().data == []
        for use in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError) as unknown:
                use(made[0])
            assert unknown.value.code == "batch_not_found"
        done = ended(sdk, made[0])
        with pytest.raises(openai.NotFoundError):
            bob.files.content(done.output_file_id)


def test_what_starts_no_batch(sdk, live_with_jobs):
    picture = upload(sdk, b"x", purpose="vision")
    body = {"input_file_id": upload(sdk, line("a")), "endpoint": GENERATIONS, "completion_window": "24h"}
    with httpx.Client(base_url=live_with_jobs) as client:

        def refusal(**changes: object) -> tuple[int, str, str | None]:
            answer = client.post("/v1/batches", json=body | changes)
            return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]

        assert refusal(input_file_id="file-0") == (404, "file_not_found", "input_file_id")
        assert refusal(input_file_id=picture) == (400, "invalid_value", "input_file_id")
        assert refusal(endpoint="/v1/chat/completions") == (400, "invalid_value", "endpoint")
        assert refusal(completion_window="1h") == (400, "invalid_value", "completion_window")
        assert refusal(metadata={"a": 1}) == (400, "invalid_type", "metadata.a")
        assert refusal(output_expires_after={"anchor": "created_at", "seconds": 1})[1] == "integer_below_min_value"
        assert refusal(other=1) == (400, "unknown_parameter", "other")
        listed = client.get("/v1/batches")
        assert (listed.status_code, listed.json()["error"]["code"]) == (403, "api_key_required")
