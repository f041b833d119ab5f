"""W3C trace context as the text that messages carry; without a tracing SDK contexts and text are empty."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.environment_variables import OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.trace import INVALID_SPAN, ProxyTracer, ProxyTracerProvider, Span, SpanContext, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_FIELD = "traceparent"
_NAMED = OTEL_PYTHON_TRACER_PROVIDER in os.environ
"""Then OpenTelemetry makes that provider when it is first asked for."""
_propagator = TraceContextTextMapPropagator()


NO_SPAN: AbstractContextManager[Span] = nullcontext(INVALID_SPAN)
"""In place of a span that would be ``pointless``."""


def pointless(tracer: Tracer, parent: Context | None = None) -> bool:
    """Whether a span in ``parent`` (default: the current context) would be recorded by nobody and pass no trace on.

    Making it all the same would take longer than much of what it measures.
    """
    # By type: these are abstract classes, of which isinstance asks in Python.
    if type(tracer) is not ProxyTracer or not _nobody_records():
        return False
    return not trace.get_current_span(parent).get_span_context().is_valid


def _nobody_records() -> bool:
    # As trace.get_tracer_provider() would say, which looks into the environment each time.
    if trace._TRACER_PROVIDER is None and not _NAMED:  # nothing public tells it
        return True
    return type(trace.get_tracer_provider()) is ProxyTracerProvider


def inject(context: Context | None = None) -> str:
    """The ``traceparent`` of ``context`` (default: the current one); empty without a valid span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    return carrier.get(_FIELD, "")


def extract(traceparent: str) -> Context:
    """A context to start child spans in; without a parent where the text is empty or not a valid ``traceparent``."""
    return _propagator.extract({_FIELD: traceparent}, Context())


def named_by(traceparent: str) -> SpanContext:
    """The span that the text names, to be linked to; not a valid one where the text is none."""
    return trace.get_current_span(extract(traceparent)).get_span_context()


def transfer_attributes(endpoint: str, nbytes: int) -> Mapping[str, str | int]:
    """Of a span that fetches ``nbytes`` from ``endpoint``, ``tcp://HOST:PORT``."""
    host, _, port = endpoint.partition("://")[2].rpartition(":")
    told: dict[str, str | int] = {"network.transport": "tcp", "disagfusion.bytes": nbytes}
    if port.isdecimal():
        told |= {"server.address": host.strip("[]"), "server.port": int(port)}
    return told
