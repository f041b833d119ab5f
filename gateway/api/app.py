"""Puts the HTTP API together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from gateway.api import admin, edits, files, health, images, models
from gateway.api.context import RequestContext
from gateway.api.edit_pictures import PictureLoader
from gateway.api.error_handlers import UnexpectedErrors, install_handlers
from gateway.api.forms import FormReader
from gateway.api.remote_pictures import FetchRules, PictureFetcher
from gateway.api.state import Api
from gateway.service.interfaces import ImageService, OperatorService
from gateway.settings import Settings
from gateway.storage.results import ResultStore
from gateway.storage.room import Room

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

EXPOSED_HEADERS = (
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    "server-timing",
    "x-predicted-wait-ms",
    "x-seed",
)


def create_app(
    service: ImageService,
    settings: Settings,
    *,
    lifespan: Lifespan | None = None,
    operator: OperatorService | None = None,
    room: Room | None = None,
) -> FastAPI:
    """The API in front of ``service``. ``lifespan`` runs around the serving of requests.

    ``operator`` is served below ``/admin`` if the settings name an admin key. ``room`` is for uploads, and shared with
    whatever in the service holds them.
    """
    results = ResultStore(
        directory=settings.results_dir,
        max_bytes=settings.results_max_bytes,
        max_age_seconds=settings.results_max_age_seconds,
    )
    room = room or Room(settings.uploads_max_bytes)
    fetcher = PictureFetcher(FetchRules.of(settings)) if settings.fetch_image_urls else None
    loader = PictureLoader(settings, fetcher)

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with lifespan(app) if lifespan else nullcontext():
                yield
        finally:
            await loader.close()
            results.close()

    app = FastAPI(
        title="DisagFusion",
        lifespan=run,
        middleware=_middleware(settings),
        # RequestContext makes the request's span; FastAPI's own would double it and log what clients sent.
        telemetry={"tracing": False, "operation_spans": False, "metrics": False, "logs": False},
        redirect_slashes=False,  # clients do not follow a redirected POST
        docs_url=None,  # the pages load scripts from elsewhere; /openapi.json stays
        redoc_url=None,
    )
    app.state.api = Api(
        service, settings, results, room, FormReader(room), loader, started=int(time.time()), operator=operator
    )
    install_handlers(app)
    for concept in (health, files, images, edits, models):
        app.include_router(concept.router)
    if operator is not None and settings.admin_key is not None:
        app.include_router(admin.router)
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    """Outermost first: even the answer to a preflight, or to a crash, gets its id and its line in the log."""
    layers = [Middleware(RequestContext)]
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
            )
        )
    return [*layers, Middleware(UnexpectedErrors)]
