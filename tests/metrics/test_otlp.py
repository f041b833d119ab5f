"""The registry as OpenTelemetry's data: values, names, units, and what an exporter makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from gateway.metrics.instruments import Instruments, exemplar
from gateway.metrics.otlp import LABELS, NAMES, export_metrics, read
from tests.otlp import Received, collector, values
from tests.servers import free_port
from wire.telemetry import MetricsExport, metrics_export

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
Export = Callable[[CollectorRegistry], dict[str, Metric]]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch):
    with collector() as there:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", there.url)
        yield there


@pytest.fixture
def to(received: Received) -> MetricsExport:
    found = metrics_export("gateway")
    assert found is not None
    return found


@pytest.fixture
def export(received: Received, to: MetricsExport) -> Export:
    def sent(registry: CollectorRegistry) -> dict[str, Metric]:
        to.exporter.export(read(registry, to))
        return received.latest()

    return sent


def test_counters_are_cumulative_sums_since_their_series_began(export: Export) -> None:
    instruments = Instruments()
    instruments.requests("tiny", "completed").inc(3)
    (point,) = export(instruments.registry)["disagfusion_requests_total"].sum.data_points
    assert values(point.attributes) == {"model": "tiny", "outcome": "completed"}
    assert point.as_double == 3
    assert 0 < point.start_time_unix_nano < point.time_unix_nano
    instruments.requests("tiny", "completed").inc()
    told = export(instruments.registry)["disagfusion_requests_total"].sum
    assert (told.is_monotonic, told.aggregation_temporality) == (True, CUMULATIVE)
    assert told.data_points[0].as_double == 4
    assert told.data_points[0].start_time_unix_nano == point.start_time_unix_nano


def test_histograms_have_their_buckets_and_exemplars(export: Export) -> None:
    instruments = Instruments()
    with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        instruments.prediction("tiny").observe(0.8, exemplar())
    for ratio in (0.95, 1.05, 9.0):
        instruments.prediction("tiny").observe(ratio)
    told = export(instruments.registry)["disagfusion_prediction_error_ratio"]
    (point,) = told.histogram.data_points
    assert told.unit == "1"
    assert told.histogram.aggregation_temporality == CUMULATIVE
    assert (point.count, point.sum) == (4, pytest.approx(11.8))
    assert list(point.explicit_bounds) == [0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4]
    assert list(point.bucket_counts) == [0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1]
    assert not point.HasField("min")
    (found,) = point.exemplars
    assert int.from_bytes(found.trace_id) == span.get_span_context().trace_id
    assert found.as_double == 0.8


def test_what_is_true_or_false_is_a_number(export: Export) -> None:
    registry = CollectorRegistry()
    family = GaugeMetricFamily("disagfusion_ready", "1 while …", value=True)
    registry.register(Mock(collect=lambda: [family], describe=list))
    assert export(registry)["disagfusion_ready"].gauge.data_points[0].as_double == 1.0


def test_names_and_labels_of_the_conventions(export: Export) -> None:
    instruments = Instruments()
    instruments.http_seconds("POST", "", "200").observe(0.3)
    instruments.generation_seconds("generate_content", "disagfusion", "tiny", "").observe(0.3)
    told = export(instruments.registry)
    assert values(told["http.server.request.duration"].histogram.data_points[0].attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    assert values(told["gen_ai.server.request.duration"].histogram.data_points[0].attributes) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "disagfusion",
        "gen_ai.response.model": "tiny",
    }
    assert told["http.server.request.duration"].unit == "s"
    assert not any(name.startswith(("http_", "gen_ai_")) for name in told)


def test_every_convention_that_is_renamed_is_a_metric() -> None:
    labels = Instruments().labels
    assert set(NAMES) <= set(labels)
    assert {label for name in NAMES for label in labels[name]} == set(LABELS)


def test_every_metric_that_has_a_series_is_exported(export: Export) -> None:
    instruments = Instruments()
    told = export(instruments.registry)
    families = [family for family in instruments.registry.collect() if family.samples]
    assert len(told) == len(families) > 5
    assert told["process_resident_memory_bytes"].unit == "By"
    assert told["process_resident_memory_bytes"].gauge.data_points[0].as_double > 0


async def test_a_gateway_that_ends_sends_what_it_counted_last(received: Received, to: MetricsExport) -> None:
    instruments = Instruments()
    task = asyncio.create_task(export_metrics(instruments.registry, to))  # its interval is a minute
    await asyncio.sleep(0)
    instruments.pictures("tiny").inc(2)
    task.cancel()
    await asyncio.wait([task])
    assert received.latest()["disagfusion_pictures_total"].sum.data_points[0].as_double == 2


async def test_a_collector_that_is_gone_keeps_no_gateway_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("gateway.metrics.otlp.END_SECONDS", 0.01)
    to = metrics_export("gateway")
    assert to is not None
    task = asyncio.create_task(export_metrics(Instruments().registry, to))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
