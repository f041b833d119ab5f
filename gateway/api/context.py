"""What surrounds every request: its id, its span, its processing time, its line in the log.

Others leave in its state: ``headers`` for the answer, whichever it will be; ``error_code``; and ``ended``, which is
called with the status (0: no answer began) and the error's code once all is over; ``work``, which says for the log
what was asked for (``gateway.api.work_done``); and ``idempotency``, where the answer may not be the only one.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.metrics.instruments import Instruments, exemplar
from wire.trace import NO_SPAN, pointless

log = logging.getLogger(__name__)
tracer = trace.get_tracer("disagfusion.gateway")
propagator = TraceContextTextMapPropagator()

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"))
OTHER_METHOD = "_OTHER"
"""OpenTelemetry's word for what clients make up."""

POLLED = frozenset(("/healthz", "/livez", "/readyz", "/admin/scaling"))
"""Asked every few seconds by probes and launchers: as long as all is well, a line each says nothing to operators."""


class RequestContext:
    """Outermost middleware. Puts ``request_id`` into the request's state and the headers of every response."""

    def __init__(self, app: ASGIApp, instruments: Instruments | None = None) -> None:
        self.app = app
        self._instruments = instruments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = new_id()
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

        if self._instruments is not None:
            self._instruments.http_active(_method(scope)).inc()
        with _span(scope) as span:
            try:
                await self.app(scope, receive, add_headers)
            finally:
                if span.is_recording():
                    _describe_outcome(span, scope, status, state)
                if self._instruments is not None:
                    _count(self._instruments, scope, status, time.perf_counter() - began)
                if "ended" in state:
                    state["ended"](status, state.get("error_code", ""))
                level = _level(scope, status)
                if log.isEnabledFor(level):
                    _log(level, scope, status, _elapsed_ms(began), state)


def new_id() -> str:
    """Of a request. In the order of time: the database adds what is recorded of it at one end of an index, which takes
    half of what it takes all over a large one."""
    return f"req_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _level(scope: Scope, status: int) -> int:
    is_poll = scope["path"] in POLLED and scope["method"] in ("GET", "HEAD")
    return logging.DEBUG if is_poll and status == 200 else logging.INFO


def _log(level: int, scope: Scope, status: int, milliseconds: int, state: Mapping[str, Any]) -> None:
    """``work``, where the request was for pictures, says what it asked for and what its stages took."""
    where = f"{scope['method']} {quote(scope['path'])}"  # quoted: a path may hold line breaks
    work = state.get("work")
    about = {
        "request_id": state["request_id"],
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "milliseconds": milliseconds,
        **{name: state[key] for name, key in (("error", "error_code"), ("idempotency", "idempotency")) if key in state},
        **(work.fields() if work is not None else {}),
    }
    line = '%s "%s" %d in %d ms%s'
    told = f", x-idempotency {state['idempotency']}" if "idempotency" in state else ""
    told += f": {work}" if work is not None else ""
    log.log(level, line, state["request_id"], where, status, milliseconds, told, extra={"about": about})


def _count(instruments: Instruments, scope: Scope, status: int, seconds: float) -> None:
    method = _method(scope)
    instruments.http_active(method).dec()
    route = getattr(scope.get("route"), "path", "")
    instruments.http_seconds(method, route, str(status)).observe(seconds, exemplar())


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else OTHER_METHOD


def _span(scope: Scope) -> AbstractContextManager[Span]:
    is_traced = any(name == b"traceparent" for name, _ in scope["headers"])
    parent = propagator.extract(Headers(scope=scope)) if is_traced else Context()
    if pointless(tracer, parent):
        return NO_SPAN
    return tracer.start_as_current_span(
        scope["method"], context=parent, kind=SpanKind.SERVER, attributes=_request_attributes(scope)
    )


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
