"""Switches OpenTelemetry's SDK on where a process starts, by the standard ``OTEL_*`` variables; off without them.

Everything else of ours speaks to opentelemetry-api alone, which does nothing until this has run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource

MIN_INTERVAL_MILLISECONDS = 100


class BadExporter(Exception):
    """Spans cannot be exported as the environment says; the text is for the operator and names the variable."""


def configure(service_name: str) -> bool:
    """Export spans as ``service_name`` if the environment says where to; return whether it does.

    Endpoints, headers, sampling and batching follow the standard variables. Raises ``BadExporter``.
    """
    exporter = _exporter_name("TRACES")
    if exporter == "none":
        return False
    # Imported here: a process that exports nothing does not load the SDK.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    provider = TracerProvider(resource=_resource(service_name))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()))
    trace.set_tracer_provider(provider)
    return True


@dataclass(frozen=True, slots=True)
class MetricsExport:
    """Where metrics go, as whom, and how often."""

    exporter: MetricExporter
    resource: Resource
    interval_seconds: float


def metrics_export(service_name: str) -> MetricsExport | None:
    """What the environment says of metrics; None where they are not to be exported. Raises ``BadExporter``."""
    name = _exporter_name("METRICS")
    if name == "none":
        return None
    temporality = _first("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE").lower() or "cumulative"
    if temporality != "cumulative":
        raise BadExporter(
            f"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE is '{temporality}'; only cumulative is built in"
        )
    interval = _interval_seconds()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

    exporter = OTLPMetricExporter() if name == "otlp" else ConsoleMetricExporter()
    return MetricsExport(exporter, _resource(service_name), interval)


def shut_down() -> None:
    """Export what waits, for a process whose exit handlers will not run; nothing where nothing is exported."""
    end = getattr(trace.get_tracer_provider(), "shutdown", None)  # of the SDK's providers alone
    if end is not None:
        end()


def _resource(service_name: str) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    # What is given in code would win over the operator's name.
    named = _first("OTEL_SERVICE_NAME") or "service.name=" in _first("OTEL_RESOURCE_ATTRIBUTES")
    return Resource.create({} if named else {SERVICE_NAME: service_name})


def _exporter_name(signal: Literal["TRACES", "METRICS"]) -> str:
    """``otlp``, ``console`` or ``none``."""
    if _first("OTEL_SDK_DISABLED").lower() == "true":
        return "none"
    endpoint = _first(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    name = _first(f"OTEL_{signal}_EXPORTER") or ("otlp" if endpoint else "none")
    if name not in ("otlp", "console", "none"):
        raise BadExporter(f"OTEL_{signal}_EXPORTER is '{name}'; it may be otlp, console or none")
    protocol = _first(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if name == "otlp" and protocol != "http/protobuf":
        raise BadExporter(f"OTEL_EXPORTER_OTLP_PROTOCOL is '{protocol}'; only http/protobuf is built in")
    return name


def _interval_seconds() -> float:
    told = _first("OTEL_METRIC_EXPORT_INTERVAL") or "60000"
    if not told.isdecimal() or int(told) < MIN_INTERVAL_MILLISECONDS:
        raise BadExporter(
            f"OTEL_METRIC_EXPORT_INTERVAL is '{told}'; it must be milliseconds, {MIN_INTERVAL_MILLISECONDS} or more"
        )
    return int(told) / 1000


def _first(*variables: str) -> str:
    """The first that is set; by OpenTelemetry's rules an empty one is not."""
    return next((value for name in variables if (value := os.environ.get(name, "").strip())), "")
