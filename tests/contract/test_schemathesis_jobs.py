"""Jobs and batches with a database behind them: whatever the OpenAPI document allows, and much that it forbids."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.contract.generated import DRAWING, FORM, GENERATIONS, INNARDS, JSON, likely, operations_of, try_out

KEY = "sk-alice"
SENT = {"headers": {"authorization": f"Bearer {KEY}"}, "timeout": 60}
SETTINGS = {"api_keys": {"alice": KEY}, "max_pixels": 128 * 128, "fetch_image_urls": False}
JOBS, BATCHES = "/v1/images/jobs", "/v1/batches"
PATIENCE = 240.0
AS_JOB = {"async": True, "stream": False, "webhook_url": None}
MANY = pytest.mark.parametrize("examples", [20, pytest.param(500, marks=pytest.mark.nightly)])

pytestmark = pytest.mark.parametrize("settings_changes", [SETTINGS], ids=["with keys"])


@pytest.fixture
def document(live_with_jobs: str, service: Any) -> Any:
    """Of one model that does everything."""
    first, *others = service.served
    workflows = first.workflows + tuple(each for other in others[1:] for each in other.workflows)
    service.served = (msgspec.structs.replace(first, workflows=workflows),)
    return schemathesis.openapi.from_url(f"{live_with_jobs}/openapi.json")


@pytest.fixture
def http(live_with_jobs: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_with_jobs, **SENT) as client:
        yield client


def no_defect(caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def of_jobs(document: Any, mode: GenerationMode) -> dict[str, Any]:
    found = operations_of(document, mode)
    return {label: each for label, each in found.items() if JOBS in label or BATCHES in label}


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@MANY
def test_no_request_of_the_document_breaks_anything(document, mode, examples, caplog):
    operations = of_jobs(document, mode)
    assert {f"GET {JOBS}", f"POST {BATCHES}", f"GET {BATCHES}"} <= operations.keys()
    for operation in operations.values():
        try_out(operation.as_strategy(mode), examples, SENT)
    no_defect(caplog)


@MANY
def test_nothing_breaks_what_is_there(document, http, service, examples, caplog):
    """The same for jobs and batches that exist, in every state; some are cancelled and deleted by it."""
    operations = of_jobs(document, GenerationMode.POSITIVE)
    jobs = [http.post("/v1/images/generations", json={"prompt": "x", "async": True}).json()["id"] for _ in range(5)]
    file = upload(http, [{"prompt": "x"}] * 3)
    body = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    batches = [http.post(BATCHES, json=body).json()["id"] for _ in range(5)]
    known = {"job_id": st.sampled_from(jobs), "batch_id": st.sampled_from(batches)}

    @st.composite
    def cases(draw: st.DrawFn, operation: Any) -> schemathesis.Case:
        case = draw(operation.as_strategy(GenerationMode.POSITIVE))
        case.path_parameters = {name: draw(known[name]) for name in case.path_parameters or ()}
        if case.query.get("after") is not None:
            case.query["after"] = draw(known["job_id" if JOBS in operation.label else "batch_id"])
        if operation.label == f"POST {BATCHES}":
            case.body["input_file_id"] = file
        return case

    found = {label: try_out(cases(operation), examples, SENT) for label, operation in operations.items()}
    no_defect(caplog)
    assert found[f"GET {BATCHES}/{{batch_id}}"][200] == found[f"GET {BATCHES}/{{batch_id}}"].total()
    assert found[f"GET {JOBS}"][200] > examples // 2, found
    assert found[f"POST {BATCHES}"][200] > examples // 4, found


@pytest.mark.parametrize(("label", "media_type"), DRAWING)
@MANY
def test_what_the_document_allows_is_drawn_as_a_job(document, http, label, media_type, examples, caplog):
    operation = operations_of(document, GenerationMode.POSITIVE)[label]
    as_job = {"async": "true", "stream": "false", "webhook_url": ""} if media_type == FORM else AS_JOB
    found = try_out(likely(operation, media_type, 4, **as_job), examples, SENT)
    assert found[202] >= examples // 2, found
    listed = http.get(JOBS, params={"limit": 100}).json()["data"]
    for job in listed:
        ended = wait(http, f"{JOBS}/{job['id']}")
        assert ended["status"] == "completed", ended
    no_defect(caplog)


@MANY
def test_what_the_document_allows_is_drawn_by_a_batch(document, http, examples, caplog):
    """One batch of as many lines: each ends, completed or with an error in form."""
    operation = operations_of(document, GenerationMode.POSITIVE)[GENERATIONS]
    bodies: list[Any] = []

    @hypothesis.settings(
        max_examples=examples, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(case=st.one_of(likely(operation, JSON, 1), operation.as_strategy(GenerationMode.POSITIVE)))
    def draw(case: schemathesis.Case) -> None:
        bodies.append(case.body)

    draw()
    body = {"input_file_id": upload(http, bodies), "endpoint": "/v1/images/generations", "completion_window": "24h"}
    done = wait(http, f"{BATCHES}/{http.post(BATCHES, json=body).json()['id']}")
    assert done["status"] == "completed", done
    counts = done["request_counts"]
    assert counts["completed"] + counts["failed"] == counts["total"] == len(bodies)
    assert counts["completed"] >= examples // 4, counts
    if done["error_file_id"]:
        errors = http.get(f"/v1/files/{done['error_file_id']}/content").text
        assert not INNARDS.search(errors)
        for line in map(json.loads, errors.splitlines()):
            assert 400 <= line["response"]["status_code"] < 500, line
            assert list(line["response"]["body"]["error"]) == ["message", "type", "param", "code"]
    no_defect(caplog)


def upload(http: httpx.Client, bodies: list[Any]) -> str:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/images/generations", "body": body}
        for number, body in enumerate(bodies)
    ]
    files = {"file": ("in.jsonl", "\n".join(map(json.dumps, lines)).encode())}
    return http.post("/v1/files", data={"purpose": "batch"}, files=files).json()["id"]


def wait(http: httpx.Client, path: str) -> dict[str, Any]:
    limit = time.monotonic() + PATIENCE
    while (found := http.get(path).json())["status"] not in ("completed", "failed", "cancelled", "expired"):
        assert time.monotonic() < limit, found
        time.sleep(0.02)
    return found
