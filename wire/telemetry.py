"""Switches OpenTelemetry's SDK on where a process starts, by the standard ``OTEL_*`` variables; off without them.

Everything else of ours speaks to opentelemetry-api alone, which does nothing until this has run.
"""

from __future__ import annotations

import os


class BadExporter(Exception):
    """Spans cannot be exported as the environment says; the text is for the operator and names the variable."""


def configure(service_name: str) -> bool:
    """Export spans as ``service_name`` if the environment says where to; return whether it does.

    Endpoints, headers, sampling and batching follow the standard variables. Raises ``BadExporter``.
    """
    exporter = _exporter_name()
    if exporter == "none":
        return False
    # Imported here: a process that exports nothing does not load the SDK.
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    # What is given in code would win over the operator's name.
    named = _first("OTEL_SERVICE_NAME") or "service.name=" in _first("OTEL_RESOURCE_ATTRIBUTES")
    provider = TracerProvider(resource=Resource.create({} if named else {SERVICE_NAME: service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()))
    trace.set_tracer_provider(provider)
    return True


def _exporter_name() -> str:
    """``otlp``, ``console`` or ``none``."""
    if _first("OTEL_SDK_DISABLED").lower() == "true":
        return "none"
    endpoint = _first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    name = _first("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if name not in ("otlp", "console", "none"):
        raise BadExporter(f"OTEL_TRACES_EXPORTER is '{name}'; it may be otlp, console or none")
    protocol = _first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if name == "otlp" and protocol != "http/protobuf":
        raise BadExporter(f"OTEL_EXPORTER_OTLP_PROTOCOL is '{protocol}'; only http/protobuf is built in")
    return name


def _first(*variables: str) -> str:
    """The first that is set; by OpenTelemetry's rules an empty one is not."""
    return next((value for name in variables if (value := os.environ.get(name, "").strip())), "")
