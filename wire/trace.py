"""W3C trace context as the text that messages carry; without a tracing SDK contexts and text are empty."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_FIELD = "traceparent"
_propagator = TraceContextTextMapPropagator()


def inject(context: Context | None = None) -> str:
    """The ``traceparent`` of ``context`` (default: the current one); empty without a valid span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    return carrier.get(_FIELD, "")


def extract(traceparent: str) -> Context:
    """A context to start child spans in; without a parent where the text is empty or not a valid ``traceparent``."""
    return _propagator.extract({_FIELD: traceparent}, Context())
