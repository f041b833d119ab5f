"""Jobs and batches of a gateway that is killed, on SQLite and PostgreSQL, with emulated stage servers: done once."""

from __future__ import annotations

import base64
import json
import re
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.needed import needs

PROFILE = Path(__file__).with_name("slow.toml")
JOBS, LINES = 20, 200
GENERATIONS = "/v1/images/generations"
PATIENCE = 240.0
ADMIN_KEY = "sk-operator-of-jobs"

pytestmark = pytest.mark.services


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs("postgresql"))])
def database(request) -> dict[str, str]:
    """What a gateway must be told of it."""
    if request.param == "sqlite":
        return {}
    return {"DISAGFUSION_DATABASE_URL": request.getfixturevalue("postgres")}


@pytest.fixture
def stage(start, free_port):
    """Starts a stage server with all roles for the gateway at a port."""

    def serve(port: int, scale: str = "0.05"):
        roles = ("--role", "encoder,dit,decoder", "--gateway", f"tcp://127.0.0.1:{port}", "--time-scale", scale)
        return start("-m", "stage_server", "--engine", "emulated", "--profile", str(PROFILE), *roles)

    return serve


@pytest.fixture
def gateway(start, listening, free_port):
    """Starts a gateway: the process and its url."""

    def serve(port: int, **environment: str):
        control = ("--control-bind", f"tcp://127.0.0.1:{port}")
        process = start("-m", "gateway", "--port", "0", *control, "--log-level", "info", **environment)
        return process, listening(process)

    return serve


def post(url: str, seed: int) -> dict:
    body = {"prompt": f"picture {seed}", "size": "64x64", "num_inference_steps": 20, "seed": seed, "async": True}
    answer = httpx.post(f"{url}/v1/images/generations", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


def jobs_of(url: str, ids: list[str]) -> list[dict]:
    with httpx.Client(base_url=url, timeout=30) as client:
        return [client.get(f"/v1/images/jobs/{each}").json() for each in ids]


def ended(url: str, ids: list[str]) -> list[dict]:
    limit = time.monotonic() + PATIENCE
    while True:
        found = jobs_of(url, ids)
        if all(job["completed_at"] for job in found):
            return found
        assert time.monotonic() < limit, Counter(job["status"] for job in found)
        time.sleep(0.3)


def start_batch(url: str, lines: int) -> str:
    """A batch of that many pictures, with seeds from 1000 on."""
    body = {"prompt": "a picture", "size": "64x64", "num_inference_steps": 1}
    requests = (
        {"custom_id": f"line {n}", "method": "POST", "url": GENERATIONS, "body": body | {"seed": 1000 + n}}
        for n in range(lines)
    )
    data = "\n".join(map(json.dumps, requests)).encode()
    file = httpx.post(f"{url}/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", data)}).json()["id"]
    batch = {"input_file_id": file, "endpoint": GENERATIONS, "completion_window": "24h"}
    return httpx.post(f"{url}/v1/batches", json=batch).json()["id"]


def ended_batch(url: str, batch_id: str) -> dict:
    limit = time.monotonic() + PATIENCE
    while not (batch := httpx.get(f"{url}/v1/batches/{batch_id}").json())["completed_at"]:
        assert batch["status"] in ("in_progress", "finalizing"), batch
        assert time.monotonic() < limit, batch
        time.sleep(0.3)
    return batch


def output_of(url: str, batch: dict) -> list[dict]:
    content = httpx.get(f"{url}/v1/files/{batch['output_file_id']}/content", timeout=30)
    return [json.loads(line) for line in content.text.splitlines()]


def used(url: str) -> dict[str, int]:
    """Of everybody today, or over midnight."""
    answer = httpx.get(f"{url}/admin/usage", headers={"authorization": f"Bearer {ADMIN_KEY}"}).raise_for_status()
    return {name: sum(row[name] for row in answer.json()["data"]) for name in ("requests", "images", "failed")}


def seed_of(answer: dict) -> int:
    """That the picture names: emulated decoders write it into a text chunk."""
    (item,) = answer["data"]
    png = base64.b64decode(item["b64_json"])
    at = png.index(b"tEXtseed\0")
    length = int.from_bytes(png[at - 4 : at], "big")  # of the chunk's text, whose checksum may begin with digits
    return int(png[at + 9 : at + 4 + length])


def test_every_job_is_done_once_though_its_gateway_is_killed(database, gateway, stage, until, free_port, tmp_path):
    port, database = free_port(), database | {"DISAGFUSION_ADMIN_KEY": ADMIN_KEY}
    process, url = gateway(port, **database)
    stage(port)
    until(lambda: httpx.get(f"{url}/readyz").status_code == 200, "ready")
    batch = start_batch(url, LINES)
    ids = [post(url, seed)["id"] for seed in range(JOBS)]
    until(lambda: sum(job["completed_at"] is not None for job in jobs_of(url, ids)) >= 3, "three jobs that are done")
    process.kill()
    assert len(re.findall(r"job_\w+ completed", process.text())) < JOBS + LINES
    again, url = gateway(port, **database)
    done = ended(url, ids)
    assert [job["status"] for job in done] == ["completed"] * JOBS
    assert [seed_of(job["response"]) for job in done] == list(range(JOBS))
    whole = ended_batch(url, batch)
    assert whole["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    lines = output_of(url, whole)
    assert [line["custom_id"] for line in lines] == [f"line {n}" for n in range(LINES)]
    assert [seed_of(line["response"]["body"]) for line in lines] == list(range(1000, 1000 + LINES))
    assert "run again" in again.text(), "without waiting for leases"
    stored = Counter(re.findall(r"(job_\w+) completed", process.text() + again.text()))
    assert max(stored.values()) == 1
    once = {"requests": JOBS + LINES + 1, "images": JOBS + LINES, "failed": 0}  # and the start of the batch
    until(lambda: used(url) == once, "each recorded once")
    assert "Traceback" not in again.text()


def test_the_use_of_every_answer_is_recorded_though_the_gateway_is_killed(gateway, stage, until, free_port):
    port = free_port()
    process, url = gateway(port, DISAGFUSION_ADMIN_KEY=ADMIN_KEY)
    stage(port)
    until(lambda: httpx.get(f"{url}/readyz").status_code == 200, "ready")
    body = {"prompt": "a picture", "size": "64x64", "num_inference_steps": 1}
    answers = [httpx.post(f"{url}{GENERATIONS}", json=body).status_code for _ in range(30)]
    process.kill()
    assert answers == [200] * 30
    again, url = gateway(port, DISAGFUSION_ADMIN_KEY=ADMIN_KEY)
    until(lambda: used(url) == {"requests": 30, "images": 30, "failed": 0}, "each recorded once")
    assert "Traceback" not in again.text()


@needs("postgresql")
def test_two_gateways_share_jobs(postgres, gateway, stage, until, free_port, tmp_path):
    """What one accepts the other tells of, cancels, and does, once the first is dead and its leases are over."""
    shared = {"DISAGFUSION_DATABASE_URL": postgres, "DISAGFUSION_FILE_STORE": f"file://{tmp_path}/shared"}
    ports = free_port(), free_port()
    first, url = gateway(ports[0], **shared, DISAGFUSION_STATE_DIR=str(tmp_path / "a"))
    second, other = gateway(ports[1], **shared, DISAGFUSION_STATE_DIR=str(tmp_path / "b"))
    for port, at in zip(ports, (url, other), strict=True):
        stage(port, "1")
        until(lambda at=at: httpx.get(f"{at}/readyz").status_code == 200, "ready")
    ids = [post(url, seed)["id"] for seed in range(8)]
    cancelled = post(url, 99)["id"]
    assert httpx.delete(f"{other}/v1/images/jobs/{cancelled}").json()["status"] == "cancelled"
    assert httpx.get(f"{url}/v1/images/jobs/{cancelled}").json()["status"] == "cancelled"
    batch = start_batch(url, 2)
    first.kill()
    done = ended(other, ids)
    assert [job["status"] for job in done] == ["completed"] * 8
    assert [seed_of(job["response"]) for job in done] == list(range(8))
    assert [line["custom_id"] for line in output_of(other, ended_batch(other, batch))] == ["line 0", "line 1"]
    stored = Counter(re.findall(r"(job_\w+) completed", first.text() + second.text()))
    assert max(stored.values()) == 1
    assert "Traceback" not in second.text()
