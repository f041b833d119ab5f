from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry import trace

from wire.telemetry import BadExporter, configure, metrics_export


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Only what a test sets."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(f"OTEL_{name}", value) for name, value in variables.items()]


@pytest.fixture
def installed(monkeypatch):
    """Providers that were made the process's own; really doing so could not be undone."""
    providers = []
    monkeypatch.setattr(trace, "set_tracer_provider", providers.append)
    yield providers
    for provider in providers:
        provider.shutdown()


@pytest.fixture
def collector():
    """Url of an OTLP endpoint, and the bodies that it received."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"TRACES_EXPORTER": "none", "EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"SDK_DISABLED": "TRUE", "TRACES_EXPORTER": "zipkin"},
        {"EXPORTER_OTLP_ENDPOINT": ""},
    ],
)
def test_off_unless_asked_for(installed, environment, variables):
    environment(variables)
    assert not configure("gateway")
    assert installed == []


def test_spans_arrive_at_the_standard_endpoint(installed, collector, monkeypatch):
    url, bodies = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    assert configure("disagfusion-gateway")
    (provider,) = installed
    provider.get_tracer("test").start_span("a span").end()
    provider.force_flush()
    ((path, body),) = bodies
    assert path == "/v1/traces"
    assert b"a span" in body
    assert b"disagfusion-gateway" in body


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")]
)
def test_the_operator_names_the_service(installed, monkeypatch, variable, value):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv(variable, value)
    assert configure("disagfusion-gateway")
    assert installed[0].resource.attributes["service.name"] == "mine"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'; it may be otlp, console or none"),
        ({"TRACES_EXPORTER": "otlp", "EXPORTER_OTLP_PROTOCOL": "grpc"}, "PROTOCOL is 'grpc'; only http/protobuf"),
        ({"EXPORTER_OTLP_ENDPOINT": "http://x", "EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "PROTOCOL is 'grpc'"),
    ],
)
def test_what_cannot_be_exported_is_refused(environment, variables, complaint):
    environment(variables)
    with pytest.raises(BadExporter, match=complaint):
        configure("gateway")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"METRICS_EXPORTER": "none", "EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"},
    ],
)
def test_metrics_are_off_unless_asked_for(environment, variables):
    environment(variables)
    assert metrics_export("gateway") is None


def test_metrics_go_where_the_standard_variables_say(environment):
    environment({"EXPORTER_OTLP_METRICS_ENDPOINT": "http://x/here", "METRIC_EXPORT_INTERVAL": "1500"})
    export = metrics_export("gateway")
    assert export.interval_seconds == 1.5
    assert export.exporter._endpoint == "http://x/here"
    assert export.resource.attributes["service.name"] == "gateway"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER is 'prometheus'; it may be otlp, console or none"),
        ({"METRICS_EXPORTER": "otlp", "EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, "PROTOCOL is 'grpc'; only http/proto"),
        (
            {"METRICS_EXPORTER": "otlp", "METRIC_EXPORT_INTERVAL": "1s"},
            "INTERVAL is '1s'; it must be milliseconds, 100",
        ),
        ({"METRICS_EXPORTER": "otlp", "METRIC_EXPORT_INTERVAL": "0"}, "INTERVAL is '0'; it must be milliseconds"),
        (
            {"METRICS_EXPORTER": "otlp", "EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"},
            "PREFERENCE is 'delta'; only cumulative",
        ),
    ],
)
def test_metrics_that_cannot_be_exported_are_refused(environment, variables, complaint):
    environment(variables)
    with pytest.raises(BadExporter, match=complaint):
        metrics_export("gateway")
