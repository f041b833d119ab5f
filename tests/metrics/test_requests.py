"""What requests add to the metrics: each case changes them by a known amount, as ``/metrics`` tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, Histogram
from starlette.requests import Request

from gateway.api.app import create_app
from gateway.api.metrics import scrape
from gateway.metrics.instruments import Instruments, Quick
from gateway.metrics.measured import Measured
from gateway.service.interfaces import DeadlineExceeded, ImageRequest, NoCapacity
from gateway.settings import Settings
from tests.contract.conftest import FakeService
from wire.params import ImageParams

URL = "/v1/images/generations"
KEY = "metrics-key-0123456"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def test_a_histogram_finds_the_buckets_that_the_library_finds() -> None:
    bounds, values = (0.1, 0.5, 1.0), (-1.0, 0.0, 0.1, 0.1000001, 0.5, 0.7, 1.0, 1.1, 1e9)
    told = []
    for kind in (Quick, Histogram):
        registry = CollectorRegistry()
        made = kind("seconds", "", ("stage",), registry=registry, buckets=bounds)
        for value in values:
            made.labels("dit").observe(value)
        samples = [sample for metric in registry.collect() for sample in metric.samples]
        told.append([(each.name, each.labels, each.value) for each in samples if not each.name.endswith("_created")])
    assert told[0] == told[1]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def instruments() -> Instruments:
    return Instruments()


def connect(service: FakeService, instruments: Instruments | None, **settings: object) -> httpx.AsyncClient:
    app = create_app(service, Settings(**settings), instruments=instruments)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g")


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def work(pictures: int = 1) -> ImageRequest:
    params = ImageParams(workflow="text2image", prompt="x", width=64, height=64, seed=1)
    return ImageRequest("req_1", "tiny", (params,) * pictures, 60.0)


async def test_http_requests_by_route_and_status(service: FakeService, instruments: Instruments) -> None:
    """With an unknown path, and a method that somebody made up."""
    async with connect(service, instruments) as client:
        for _ in range(3):
            await client.get("/healthz")
        await client.get("/nowhere/at/all")
        await client.request("BREW", "/healthz")
    count = "http_server_request_duration_seconds_count"

    def seen(method: str, route: str, status: str) -> float:
        labels = {"http_request_method": method, "http_route": route, "http_response_status_code": status}
        return value(instruments.registry, count, **labels)

    assert seen("GET", "/healthz", "200") == 3
    assert seen("GET", "", "404") == 1
    assert sum(seen("_OTHER", route, "405") for route in ("", "/healthz")) == 1
    assert value(instruments.registry, "http_server_active_requests", http_request_method="GET") == 0


async def test_a_request_under_way_counts_as_active(service: FakeService, instruments: Instruments) -> None:
    service.hang = True
    async with connect(service, instruments) as client:
        asked = asyncio.create_task(client.post(URL, json={"prompt": "x", "model": "tiny"}))
        await asyncio.to_thread(service.started.wait)
        assert value(instruments.registry, "http_server_active_requests", http_request_method="POST") == 1
        assert value(instruments.registry, "disagfusion_requests_under_way", model="tiny") == 1
        service.resumed.set()
        await asked
    assert value(instruments.registry, "http_server_active_requests", http_request_method="POST") == 0
    assert value(instruments.registry, "disagfusion_requests_under_way", model="tiny") == 0


async def test_a_finished_request(service: FakeService, instruments: Instruments) -> None:
    ticks: Iterator[float] = iter((10.0, 12.5, 12.5))
    await Measured(service, instruments, lambda: next(ticks)).generate(work(pictures=2))
    registry = instruments.registry
    assert value(registry, "disagfusion_requests_total", model="tiny", outcome="completed") == 1
    assert value(registry, "disagfusion_pictures_total", model="tiny") == 2
    # predicted 1.25 s, took 2.5 s
    assert value(registry, "disagfusion_prediction_error_ratio_sum", model="tiny") == 2.0
    for stage, phase, count, total in (
        ("encoder", "queue", 1, 0.001),
        ("encoder", "fetch", 1, 0.002),
        ("encoder", "compute", 1, 0.003),
        ("encoder", "publish", 1, 0.004),
        ("dit", "compute", 2, 1.0),
    ):
        labels = {"model": "tiny", "stage": stage, "phase": phase}
        assert value(registry, "disagfusion_stage_phase_seconds_count", **labels) == count
        assert value(registry, "disagfusion_stage_phase_seconds_sum", **labels) == total
    labels = {
        "gen_ai_operation_name": "generate_content",
        "gen_ai_provider_name": "disagfusion",
        "gen_ai_response_model": "tiny",
        "error_type": "",
    }
    assert value(registry, "gen_ai_server_request_duration_seconds_sum", **labels) == 2.5


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NoCapacity("full", retry_after_seconds=1), "no_capacity"),
        (DeadlineExceeded("late"), "deadline_exceeded"),
    ],
)
async def test_a_failed_request(service: FakeService, instruments: Instruments, error: Exception, outcome: str) -> None:
    service.error = error
    with pytest.raises(type(error)):
        await Measured(service, instruments).generate(work())
    assert value(instruments.registry, "disagfusion_requests_total", model="tiny", outcome=outcome) == 1
    assert value(instruments.registry, "disagfusion_requests_under_way", model="tiny") == 0
    assert value(instruments.registry, "disagfusion_pictures_total", model="tiny") == 0


async def test_a_cancelled_request(service: FakeService, instruments: Instruments) -> None:
    service.hang = True
    asked = asyncio.create_task(Measured(service, instruments).generate(work()))
    await asyncio.to_thread(service.started.wait)
    asked.cancel()
    await asyncio.wait([asked])
    assert value(instruments.registry, "disagfusion_requests_total", model="tiny", outcome="cancelled") == 1


async def test_what_a_scrape_says(service: FakeService, instruments: Instruments) -> None:
    async with connect(service, instruments) as client:
        await client.post(URL, json={"prompt": "x", "model": "tiny"})
        plain = await client.get("/metrics")
        modern = await client.get("/metrics", headers={"accept": OPENMETRICS})
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert 'disagfusion_requests_total{model="tiny",outcome="completed"} 1.0' in plain.text
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")
    assert 'http_route="/metrics"' not in modern.text


async def test_exemplars_name_the_trace(service: FakeService, instruments: Instruments) -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        await Measured(service, instruments).generate(work())
    trace = f"{span.get_span_context().trace_id:032x}"
    scope = {"type": "http", "headers": [(b"accept", OPENMETRICS.encode())]}
    assert f'trace_id="{trace}"' in bytes(scrape(Request(scope), instruments.registry, None).body).decode()


async def test_a_key_opens_it(service: FakeService, instruments: Instruments) -> None:
    async with connect(service, instruments, metrics_key=KEY) as client:
        refused = [
            await client.get("/metrics", headers=headers)
            for headers in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": f"Basic {KEY}"})
        ]
        let_in = await client.get("/metrics", headers={"authorization": f"Bearer {KEY}"})
    assert {answer.status_code for answer in refused} == {401}
    assert refused[0].headers["www-authenticate"] == "Bearer"
    assert let_in.status_code == 200


async def test_not_beside_the_api_if_it_has_a_port_of_its_own_or_is_off(
    service: FakeService, instruments: Instruments
) -> None:
    for client in (connect(service, instruments, metrics_port=0), connect(service, None)):
        async with client:
            assert (await client.get("/metrics")).status_code == 404
