"""The registry's metrics to an OpenTelemetry collector, read as by a scrape: nothing is counted twice.

Names and labels are those of docs/metrics.md; where OpenTelemetry's semantic conventions have the metric, theirs, with
dots. Sums are cumulative. Imports the SDK: to be imported only where metrics are exported.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import time_ns

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.samples import Sample

from wire.telemetry import MetricsExport

NAMES: Mapping[str, str] = {
    "http_server_request_duration_seconds": "http.server.request.duration",
    "http_server_active_requests": "http.server.active_requests",
    "gen_ai_server_request_duration_seconds": "gen_ai.server.request.duration",
}
LABELS: Mapping[str, str] = {
    "http_request_method": "http.request.method",
    "http_route": "http.route",
    "http_response_status_code": "http.response.status_code",
    "gen_ai_operation_name": "gen_ai.operation.name",
    "gen_ai_provider_name": "gen_ai.provider.name",
    "gen_ai_response_model": "gen_ai.response.model",
    "error_type": "error.type",
}
"""Of those."""
UNITS: Mapping[str, str] = {"seconds": "s", "bytes": "By", "celsius": "Cel", "watts": "W", "ratio": "1"}
"""By the last word of a name, ``_total`` left out."""

END_SECONDS = 5.0
"""For the last export of a gateway that ends."""

_SCOPE = InstrumentationScope("disagfusion.gateway")

log = logging.getLogger(__name__)

Labels = tuple[tuple[str, str], ...]


async def export_metrics(registry: CollectorRegistry, export: MetricsExport) -> None:
    """Until cancelled, and once more then. What cannot be sent is logged by the SDK, and the next export has it too."""

    async def once() -> None:
        data = read(registry, export)  # on the event loop's thread, which owns the state that is read
        await asyncio.to_thread(export.exporter.export, data)

    try:
        while True:
            await asyncio.sleep(export.interval_seconds)
            await once()
    finally:
        try:
            await asyncio.wait_for(once(), END_SECONDS)
        except TimeoutError:
            log.warning("the last metrics were not taken within %g s", END_SECONDS)
        export.exporter.shutdown()  # also ends an export that is still tried


def read(registry: CollectorRegistry, export: MetricsExport) -> MetricsData:
    now = time_ns()
    metrics = [_metric(family, now) for family in registry.collect() if family.samples]
    scope = ScopeMetrics(scope=_SCOPE, metrics=metrics, schema_url="")
    return MetricsData([ResourceMetrics(resource=export.resource, scope_metrics=[scope], schema_url="")])


def _metric(family: Family, now: int) -> Metric:
    data: Sum | Gauge | Histogram
    told = family.name
    if family.type == "counter":
        told = f"{family.name}_total"
        data = Sum(list(_numbers(family, told, now)), AggregationTemporality.CUMULATIVE, is_monotonic=True)
    elif family.type == "histogram":
        data = Histogram(list(_histograms(family, now)), AggregationTemporality.CUMULATIVE)
    else:
        data = Gauge(list(_numbers(family, told, now)))
    unit = UNITS.get(family.name.rpartition("_")[2], "")
    return Metric(NAMES.get(told, told), family.documentation, unit, data)


def _numbers(family: Family, name: str, now: int) -> Iterator[NumberDataPoint]:
    began = _began(family)
    for sample in family.samples:
        if sample.name == name:
            exemplars = _exemplars([sample])
            start = began.get(_labels(sample), 0)
            yield NumberDataPoint(_attributes(_labels(sample)), start, now, float(sample.value), exemplars)


def _histograms(family: Family, now: int) -> Iterator[HistogramDataPoint]:
    began = _began(family)
    buckets: defaultdict[Labels, list[Sample]] = defaultdict(list)
    sums: dict[Labels, float] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            buckets[_labels(sample)].append(sample)
        elif sample.name.endswith("_sum"):
            sums[_labels(sample)] = sample.value
    for labels, found in buckets.items():
        counts = [
            int(sample.value) for sample in found
        ]  # of all that is not above its bound, the last one's is infinite
        yield HistogramDataPoint(
            attributes=_attributes(labels),
            start_time_unix_nano=began.get(labels, 0),
            time_unix_nano=now,
            count=counts[-1],
            sum=sums[labels],
            bucket_counts=[after - before for before, after in zip([0, *counts], counts, strict=False)],
            explicit_bounds=[float(sample.labels["le"]) for sample in found[:-1]],
            min=None,  # type: ignore[arg-type] # optional in OTLP; the registry does not know it
            max=None,  # type: ignore[arg-type]
            exemplars=_exemplars(found),
        )


def _began(family: Family) -> Mapping[Labels, int]:
    """When each series began, in nanoseconds since the epoch; those of stage servers do not say (0 in OTLP)."""
    created = (sample for sample in family.samples if sample.name.endswith("_created"))
    return {_labels(sample): int(sample.value * 1e9) for sample in created}


def _labels(sample: Sample) -> Labels:
    return tuple((name, value) for name, value in sample.labels.items() if name != "le")


def _attributes(labels: Labels) -> Mapping[str, str | int]:
    """By the conventions what is empty is left out, and a status is a number."""
    return {
        LABELS.get(name, name): int(value) if name == "http_response_status_code" and value.isdecimal() else value
        for name, value in labels
        if value or name not in LABELS
    }


def _exemplars(samples: Iterable[Sample]) -> Sequence[Exemplar]:
    return [
        Exemplar(
            filtered_attributes={},
            value=found.value,
            time_unix_nano=int(float(found.timestamp or 0) * 1e9),
            span_id=int(found.labels["span_id"], 16),
            trace_id=int(found.labels["trace_id"], 16),
        )
        for sample in samples
        if (found := sample.exemplar) is not None
    ]
