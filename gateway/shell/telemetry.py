"""Switches OpenTelemetry's SDK on where a process starts, by the standard ``OTEL_*`` variables; off without them.

The rest of the gateway speaks to opentelemetry-api alone, which does nothing until this has run.
"""

from __future__ import annotations

from gateway.settings import InvalidSettings, TelemetrySettings


def configure(service_name: str, settings: TelemetrySettings | None = None) -> bool:
    """Export spans as ``service_name`` if the environment says where to; return whether it does.

    Endpoints, headers, sampling and batching follow the standard variables. Raises ``InvalidSettings``.
    """
    chosen = settings or TelemetrySettings()
    exporter = _exporter_name(chosen)
    if exporter == "none":
        return False
    # Imported here: a gateway that exports nothing does not load the SDK.
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    named = chosen.service_name or "service.name=" in chosen.resource_attributes
    provider = TracerProvider(resource=Resource.create({} if named else {SERVICE_NAME: service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()))
    trace.set_tracer_provider(provider)
    return True


def _exporter_name(settings: TelemetrySettings) -> str:
    """``otlp``, ``console`` or ``none``."""
    endpoint = settings.exporter_otlp_traces_endpoint or settings.exporter_otlp_endpoint
    name = settings.traces_exporter or ("otlp" if endpoint else "none")
    if settings.sdk_disabled:
        return "none"
    if name not in ("otlp", "console", "none"):
        raise InvalidSettings(f"OTEL_TRACES_EXPORTER is '{name}'; it may be otlp, console or none")
    protocol = settings.exporter_otlp_traces_protocol or settings.exporter_otlp_protocol or "http/protobuf"
    if name == "otlp" and protocol != "http/protobuf":
        raise InvalidSettings(f"OTEL_EXPORTER_OTLP_PROTOCOL is '{protocol}'; only http/protobuf is built in")
    return name
