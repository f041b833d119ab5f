"""What surrounds every request: its id, its span, its processing time, its line in the log.

Others leave in its state: ``headers`` for the answer, whichever it will be; ``error_code``; and ``ended``, which is
called with the status (0: no answer began) and the error's code once all is over.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)
tracer = trace.get_tracer("disagfusion.gateway")
propagator = TraceContextTextMapPropagator()


class RequestContext:
    """Outermost middleware. Puts ``request_id`` into the request's state and the headers of every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = f"req_{uuid.uuid4().hex}"
        state: dict[str, Any] = {**scope.get("state", {}), "request_id": request_id}
        scope["state"] = state
        status = 0

        async def add_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(_elapsed_ms(began))
                headers.raw.extend(state.get("headers", ()))
            await send(message)

        with tracer.start_as_current_span(
            scope["method"],
            context=propagator.extract(Headers(scope=scope)),
            kind=SpanKind.SERVER,
            attributes=_request_attributes(scope),
        ) as span:
            try:
                await self.app(scope, receive, add_headers)
            finally:
                _describe_outcome(span, scope, status, state)
                if "ended" in state:
                    state["ended"](status, state.get("error_code", ""))
                where = f"{scope['method']} {quote(scope['path'])}"  # quoted: a path may hold line breaks
                log.info('%s "%s" %d in %d ms', request_id, where, status, _elapsed_ms(began))


def _elapsed_ms(began: float) -> int:
    return round((time.perf_counter() - began) * 1000)


def _request_attributes(scope: Scope) -> Mapping[str, str | int]:
    """OpenTelemetry's HTTP server conventions."""
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"],
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
        "user_agent.original": Headers(scope=scope).get("user-agent", ""),
    }
    if scope.get("server"):
        attributes["server.address"], attributes["server.port"] = scope["server"][0], scope["server"][1] or 0
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    return attributes


def _describe_outcome(span: Span, scope: Scope, status: int, state: Mapping[str, object]) -> None:
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("disagfusion.request_id", str(state["request_id"]))
    if "error_code" in state:
        span.set_attribute("error.type", str(state["error_code"]))
    if status >= 500:
        span.set_status(StatusCode.ERROR)
