"""What an OTLP collector gets of real processes: a trace of each request, with links between traces, and metrics."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.otlp import Received, SpanOf, collector, values
from wire.types import REQUIRED

pytestmark = pytest.mark.services

PROFILE = Path(__file__).with_name("slow.toml")
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def received() -> Iterator[Received]:
    with collector() as there:
        yield there


@pytest.fixture
def service(start: Any, listening: Any, until: Any, is_ready: Any, free_port: Any, received: Received) -> Any:
    """Its url, and what ends it. A stage server for each role, each with ten times the speed of its profile."""
    port = free_port()
    otlp = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    gateway = start("-m", "gateway", "--port", "0", "--control-bind", f"tcp://127.0.0.1:{port}", **otlp)
    stages = [
        start(
            *("-m", "stage_server", "--engine", "emulated", "--profile", str(PROFILE), "--time-scale", "0.1"),
            *("--role", role, "--name", f"the-{role}", "--gateway", f"tcp://127.0.0.1:{port}", "--log-format", "json"),
            **otlp,
            OTEL_SERVICE_NAME=f"the-{role}",
        )
        for role in REQUIRED
    ]
    url = listening(gateway)
    until(lambda: is_ready(url), "ready")
    # The gateway keeps encodings once it has heard how large the encoder's store is.
    told = 'disagfusion_server_store_capacity_bytes{server="the-encoder"}'
    until(lambda: told in httpx.get(f"{url}/metrics").text, "a heartbeat")

    def end() -> list[str]:
        """The logs of the stage servers."""
        for process in (*stages, gateway):
            assert process.finish(signal.SIGTERM) == 0, process.text()
        return [process.text() for process in stages]

    return url, end


def ask(url: str, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    answer = httpx.post(
        f"{url}/v1/images/generations", json={"prompt": "a", "size": "64x64", **body}, headers=headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return answer


def path_of(spans: list[SpanOf]) -> Callable[[SpanOf], tuple[str, ...]]:
    by_id = {each.span.span_id: each for each in spans}

    def path(each: SpanOf) -> tuple[str, ...]:
        parent = by_id.get(each.span.parent_span_id)
        return (*(path(parent) if parent else ()), each.span.name)

    return path


def test_the_callers_trace_goes_on_over_every_process_with_transfers(service: Any, received: Received) -> None:
    url, end = service
    request = ask(url, {"traceparent": CLIENT}).headers["x-request-id"]
    logs = end()
    spans = [each for each in received.spans() if each.span.trace_id.hex() in CLIENT]
    path = path_of(spans)
    (root,) = (each for each in spans if each.span.parent_span_id.hex() in CLIENT)
    assert root.span.name == "POST /v1/images/generations"
    top = (root.span.name, "generate_content slow")
    there = {(path(each)[2:], each.service) for each in spans}
    for role in REQUIRED:
        stage = (f"stage {role}",) * 2
        assert ((f"stage {role}",), "gateway") in there
        assert {(stage, f"the-{role}"), ((*stage, "compute"), f"the-{role}")} <= there

    transfers = {path(each)[2:]: each for each in spans if each.span.name == "transfer"}
    assert set(transfers) == {
        ("stage dit", "stage dit", "fetch", "transfer"),
        ("stage decoder", "stage decoder", "fetch", "transfer"),
        ("transfer",),
    }, "embeddings, latents, and the picture: nobody fetches what is its own"
    assert all(path(each)[:2] == top for each in transfers.values())
    picture = transfers["transfer",]
    assert picture.service == "gateway"
    assert picture.attributes["disagfusion.bytes"] > 100
    for each in transfers.values():
        assert each.attributes["server.address"] == "127.0.0.1"
        assert each.attributes["server.port"] > 0
        assert each.attributes["disagfusion.bytes"] > 0
        assert 0 < each.span.end_time_unix_nano - each.span.start_time_unix_nano < 60e9
    assert len({each.attributes["server.port"] for each in transfers.values()}) == 3

    for role, log in zip(REQUIRED, logs, strict=True):
        (line,) = (told for told in map(json.loads, log.splitlines()) if told.get("request_id"))
        assert (line["request_id"], line["stage"], line["process"]) == (request, role, f"the-{role}")
        assert line["trace_id"] in CLIENT
        (here,) = (each for each in spans if each.service == "gateway" and each.span.name == f"stage {role}")
        assert line["span_id"] == here.span.span_id.hex()


def test_jobs_that_compute_together_and_kept_encodings_are_linked(service: Any, received: Received) -> None:
    url, end = service
    ask(url, prompt="kept")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: ask(url, prompt="kept", batching="fast"), range(4)))
    end()
    spans = [each for each in received.spans() if each.service == "gateway"]
    by_id = {each.span.span_id: each for each in spans}

    (encoding,) = (
        each for each in spans if each.span.name == "stage encoder" and "disagfusion.attempt" in each.attributes
    )
    kept = [each for each in spans if each.attributes.get("disagfusion.kept")]
    assert len(kept) == 4
    for each in kept:
        (link,) = each.span.links
        assert (link.trace_id, link.span_id) == (encoding.span.trace_id, encoding.span.span_id)
        assert values(link.attributes) == {"disagfusion.link": "kept encoding"}
        assert each.span.trace_id != encoding.span.trace_id

    together = [each for each in spans if each.span.name == "stage dit" and each.span.links]
    assert len(together) >= 2
    for each in together:
        for link in each.span.links:
            assert values(link.attributes) == {"disagfusion.link": "computed together"}
            other = by_id[link.span_id]
            assert (other.span.name, other.span.trace_id) == ("stage dit", link.trace_id)
            assert each.span.span_id in {back.span_id for back in other.span.links}
            assert link.trace_id != each.span.trace_id


def test_metrics_come_at_the_interval_and_at_the_end(service: Any, received: Received, until: Any) -> None:
    url, end = service
    until(lambda: received.metrics, "a first export")
    for _ in range(3):
        ask(url, batching="fast")
    end()
    told = received.latest()
    (done,) = told["disagfusion_requests_total"].sum.data_points
    assert done.as_double == 3
    posts = [
        point.count
        for point in told["http.server.request.duration"].histogram.data_points
        if values(point.attributes).get("http.route") == "/v1/images/generations"
    ]
    assert posts == [3]
    until(lambda: len(received.metrics) > 1, "another")
