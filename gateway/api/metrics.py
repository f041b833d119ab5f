"""``/metrics`` for Prometheus, beside the API or, where the operator wants that, at a port of its own."""

from __future__ import annotations

import hmac

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/metrics"


def scrape(request: Request, registry: CollectorRegistry, key: SecretStr | None) -> Response:
    """In the format that the request accepts: Prometheus' text, or OpenMetrics, which has exemplars.

    401 unless the request shows ``key``, where there is one.
    """
    if key is not None and not _shows(request, key):
        message = "This endpoint needs the key of metrics_key: send 'Authorization: Bearer KEY'.\n"
        return Response(message, 401, {"www-authenticate": "Bearer"}, "text/plain")
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"content-type": content_type, "cache-control": "no-store"})


def _shows(request: Request, key: SecretStr) -> bool:
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    is_bearer = scheme.lower() == "bearer"
    return is_bearer and hmac.compare_digest(shown.strip().encode("latin-1"), key.get_secret_value().encode())


class MetricsAtPath:
    """Middleware that answers ``/metrics`` itself: a scrape needs nothing of the API, and counts as no request."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, key: SecretStr | None) -> None:
        self.app = app
        self._registry = registry
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] in ("GET", "HEAD"):
            response = scrape(Request(scope), self._registry, self._key)
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """All else at a port of its own."""
    if scope["type"] == "http":
        await Response(f"There is {PATH} here, and nothing else.\n", 404, media_type="text/plain")(scope, receive, send)
