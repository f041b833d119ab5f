"""The short way for the requests that there are most of: from the middlewares straight to their endpoint.

FastAPI's own way through routes, exit stacks and dependencies costs such a request more than all that its endpoint
does. FastAPI still knows these routes: they are in the OpenAPI document, and take other methods' refusals from there.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi.routing import APIRoute, APIRouter
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.error_handlers import HANDLED, refusal


class Direct:
    """Innermost middleware. Endpoints of ``routers`` take a ``Request`` and nothing else, at paths without parameters;
    what they raise is answered as everywhere."""

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]) -> None:
        self.app = app
        self._routes: dict[tuple[str, str], APIRoute] = {}
        for router in routers:
            for route in router.routes:
                assert isinstance(route, APIRoute)  # noqa: S101 # nothing else is ever put into our routers
                self._routes |= {(method, route.path): route for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        started = False

        async def watch_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        scope["route"] = route  # spans are named after it
        request = Request(scope, receive)
        try:
            response = await route.endpoint(request)
            await response(scope, receive, watch_start)
        except HANDLED as error:
            if started:
                raise
            await refusal(request, error)(scope, receive, send)
