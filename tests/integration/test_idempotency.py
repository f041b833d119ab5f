"""``Idempotency-Key`` on gateways that share one PostgreSQL and one file store; gateways and servers are killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.needed import needs
from tests.servers import Postgres

pytestmark = [pytest.mark.services, needs("postgresql")]

PROFILE = Path(__file__).with_name("slow.toml")
URL = "/v1/images/generations"
BODY = {"prompt": "x", "size": "512x512", "num_inference_steps": 4}


@dataclass
class Running:
    """A gateway that is ready, with a stage server of its own."""

    url: str
    process: object
    http: httpx.Client

    def post(self, key: str, **body: object) -> httpx.Response:
        return self.http.post(URL, json=BODY | body, headers={"Idempotency-Key": key})


Launch = Callable[..., Running]


@pytest.fixture
def launch(start, listening, until, is_ready, free_port, tmp_path) -> Iterator[Launch]:
    """Starts gateways on the database at a url, all with one file store, each with a state folder of its own."""
    clients = []

    def gateway(name: str, database: str) -> Running:
        port = free_port()
        environment = {
            "DISAGFUSION_STATE_DIR": str(tmp_path / name),
            "DISAGFUSION_DATABASE_URL": database,
            "DISAGFUSION_FILE_STORE": (tmp_path / "store").as_uri(),
        }
        process = start("-m", "gateway", "--port", "0", "--control-bind", f"tcp://127.0.0.1:{port}", **environment)
        url = listening(process)
        start(
            *("-m", "stage_server", "--engine", "emulated", "--profile", str(PROFILE)),
            *("--role", "encoder,dit,decoder", "--gateway", f"tcp://127.0.0.1:{port}"),
        )
        until(lambda: is_ready(url), "a gateway that is ready")
        clients.append(httpx.Client(base_url=url, timeout=60))
        return Running(url, process, clients[-1])

    yield gateway
    for client in clients:
        client.close()


@contextmanager
def begun(gateway: Running, key: str) -> Iterator[None]:
    """A request whose work is under way, and whose client stays as long as it can."""
    body = BODY | {"stream": True, "num_inference_steps": 200}
    with gateway.http.stream("POST", URL, json=body, headers={"Idempotency-Key": key}) as response:
        assert next(response.iter_bytes()).startswith(b": admitted")
        yield


def test_a_key_used_on_two_gateways_at_once_is_one_generation(launch, postgres):
    both = [launch("a", postgres), launch("b", postgres)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: both[number % 2].post("once"), range(20)))
    # No seed is named, so that two generations would differ.
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
    origins = [answer.headers["x-idempotency"] for answer in answers]
    assert origins.count("new") == 1
    assert "replayed" in origins  # on the gateway that did not make it
    assert set(origins) <= {"new", "joined", "replayed"}
    assert len({answer.headers.get("x-original-request-id", answer.headers["x-request-id"]) for answer in answers}) == 1
    refused = both[1].post("once", prompt="y")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")


def test_the_work_of_a_gateway_that_was_killed_is_done_by_the_other(launch, postgres):
    doomed, other = launch("doomed", postgres), launch("other", postgres)
    first = doomed.post("finished")
    with begun(doomed, "under way"):
        doomed.process.kill()
    again = other.post("finished")
    assert (again.headers["x-idempotency"], again.content) == ("replayed", first.content)
    retried = other.post("under way", stream=True, num_inference_steps=200)  # waits for the end of the lease
    assert retried.status_code == 200
    assert retried.headers["x-idempotency"] == "new"
    event = retried.text.rstrip().rpartition("\n\n")[2]
    assert json.loads(event.partition("data: ")[2])["type"] == "image_generation.completed"


def test_without_postgresql_pictures_are_made_and_with_it_keys_count_again(launch, until):
    with Postgres() as server:
        gateway = launch("a", server.new_database())
        assert gateway.post("before").headers["x-idempotency"] == "new"
        server.crash()
        for _ in range(2):
            answer = gateway.post("before")
            assert (answer.status_code, answer.headers["x-idempotency"]) == (200, "unavailable")
        told = gateway.process.text
        until(lambda: told().count(", x-idempotency unavailable for req_") == 2, "both lines")
        assert told().count("; the gateway serves on without it") == 1
        server.start()
        origins = []
        while not origins or origins[-1] == "unavailable":  # until the next try to connect
            origins.append(gateway.post("before").headers["x-idempotency"])
        assert origins[-1] == "replayed"
