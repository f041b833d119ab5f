"""Puts the HTTP API together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from gateway.accounts.keyring import KeyRing
from gateway.api import (
    admin,
    batches,
    edits,
    files,
    health,
    images,
    jobs,
    limits,
    models,
    pictures,
    pipeline,
    usage_reports,
)
from gateway.api.at_the_door import AtTheDoor
from gateway.api.context import RequestContext
from gateway.api.direct import Direct
from gateway.api.edit_pictures import PictureLoader
from gateway.api.error_handlers import UnexpectedErrors, install_handlers
from gateway.api.forms import FormReader
from gateway.api.job_assembly import job_desk
from gateway.api.metrics import MetricsAtPath
from gateway.api.page import page_router
from gateway.api.proxies import Proxies
from gateway.api.remote_pictures import FetchRules, PictureFetcher
from gateway.api.state import Api
from gateway.cells.door import Door
from gateway.database.database import Database
from gateway.decoding.decoders import Decoders
from gateway.idempotency.once import Once
from gateway.jobs.owner import Owner
from gateway.limits.limiter import Limiter
from gateway.metering.meter import Meter
from gateway.metrics.instruments import Instruments
from gateway.metrics.measured import Measured
from gateway.moderation.hook import Hook, Stage
from gateway.moderation.moderated import Moderated, Rules
from gateway.page.files import load_page
from gateway.pipeline_feed.feed import Feed
from gateway.service.interfaces import ImageService, OperatorService
from gateway.settings import Settings
from gateway.storage.room import Room
from gateway.storage.storage import Storage

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

EXPOSED_HEADERS = (
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    "server-timing",
    "x-batching",
    "x-step-cache",
    "x-idempotency",
    "x-original-request-id",
    "x-predicted-wait-ms",
    "x-prompt-tokens",
    "x-prompt-truncated",
    *(f"x-ratelimit-{figure}-{what}" for what in ("requests", "images") for figure in ("limit", "remaining", "reset")),
    "x-seed",
    "x-seeds",
)

REFUSAL: dict[str, Any] = {
    "description": "Refused, or failed",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": "string"},
                        },
                    }
                },
            }
        }
    },
}
"""Every status but 200, in the OpenAPI document."""


def create_app(
    service: ImageService,
    settings: Settings,
    *,
    lifespan: Lifespan | None = None,
    operator: OperatorService | None = None,
    feed: Feed | None = None,
    storage: Storage | None = None,
    room: Room | None = None,
    keys: KeyRing | None = None,
    limiter: Limiter | None = None,
    meter: Meter | None = None,
    once: Once | None = None,
    database: Database | None = None,
    owner: Owner | None = None,
    decoders: Decoders | None = None,
    instruments: Instruments | None = None,
    door: Door | None = None,
) -> FastAPI:
    """The API in front of ``service``. ``lifespan`` runs around the serving of requests.

    ``operator`` is served below ``/admin`` if the settings name an admin key, and so is ``feed``. Without ``storage``
    files and pictures are kept in memory. ``room`` is for uploads, and shared with whatever in the service holds them.
    Without ``keys`` those of the settings are all there are; without ``limiter`` their defaults hold, but for budgets;
    without ``meter`` nothing is recorded or reported; without ``once`` no answer is kept for requests that are sent
    again. Without ``database`` there are no jobs; with it, ``app.state.api.desk`` is to be run beside the app, under
    the name of ``owner``. Without ``decoders`` the app has its own, which end with it. With
    ``instruments`` it counts what it does, and serves them at ``/metrics`` unless the settings name another port.
    New work is refused while the ``door`` says so.
    """
    storage = storage or Storage(settings)
    room = room or Room(settings.uploads_max_bytes)
    keys = keys or KeyRing(settings.api_keys)
    limiter = limiter or Limiter(settings.default_limits())
    once = once or Once()
    fetcher = PictureFetcher(FetchRules.of(settings)) if settings.fetch_image_urls else None
    own_decoders = Decoders(settings.max_image_pixels)  # no process yet
    loader = PictureLoader(settings, decoders or own_decoders, fetcher, files.NamedFiles(storage))
    hook = _hook(settings)
    if hook is not None:
        service = Moderated(service, hook, _rules(settings), room)
    if instruments is not None:
        service = Measured(service, instruments)

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with lifespan(app) if lifespan else nullcontext():
                yield
        finally:
            await once.close()
            await loader.close()
            own_decoders.close()
            if hook is not None:
                await hook.close()

    app = _bare_app(settings, run, instruments, door)
    reader = FormReader(room, storage.spool)
    started = int(time.time())
    api = Api(
        service, settings, storage, reader, loader, room, keys, once, started, operator, limiter, meter, feed, door
    )
    if database is not None:
        api = replace(api, desk=job_desk(api, database, owner or Owner(None)))
        if door is not None and api.desk is not None:
            door.jobs = api.desk.jobs_under_way
    app.state.api = api
    _include_routers(app, api)
    return app


def _bare_app(settings: Settings, lifespan: Lifespan, instruments: Instruments | None, door: Door | None) -> FastAPI:
    app = FastAPI(
        title="DisagFusion",
        lifespan=lifespan,
        middleware=_middleware(settings, instruments, door),
        # RequestContext makes the request's span; FastAPI's own would double it and log what clients sent.
        telemetry={"tracing": False, "operation_spans": False, "metrics": False, "logs": False},
        responses={"default": REFUSAL},  # also keeps FastAPI from promising its own 422, which nobody gets
        redirect_slashes=False,  # clients do not follow a redirected POST
        docs_url=None,  # the pages load scripts from elsewhere; /openapi.json stays
        redoc_url=None,
    )
    install_handlers(app)
    return app


def _include_routers(app: FastAPI, api: Api) -> None:
    for concept in (health, files, batches, jobs, images, edits, limits, models, pictures):
        app.include_router(concept.router)
    if api.settings.page:
        app.include_router(page_router(load_page()))
    is_administered = api.settings.admin_key is not None
    if api.operator is not None and is_administered:
        app.include_router(admin.router)
        if api.feed is not None:
            app.include_router(pipeline.router)
    if api.meter is not None:
        app.include_router(usage_reports.own)
        if is_administered:
            app.include_router(usage_reports.everybody)


def _hook(settings: Settings) -> Hook | None:
    if settings.moderation_url is None:
        return None
    return Hook(settings.moderation_url, settings.moderation_timeout_seconds, settings.moderation_secret)


def _rules(settings: Settings) -> Rules:
    stages = frozenset(map(Stage, settings.moderation_stages))
    return Rules(stages, settings.moderation_on_failure, settings.moderation_partial_images)


def _middleware(settings: Settings, instruments: Instruments | None, door: Door | None) -> list[Middleware]:
    """Outermost first: even the answer to a preflight, or to a crash, gets its id and its line in the log."""
    layers = [Middleware(RequestContext, instruments=instruments)]
    if settings.trusted_proxies:
        layers.insert(0, Middleware(Proxies, trusted=settings.trusted_proxies))
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
            )
        )
    if instruments is not None and settings.metrics_port is None:
        scrapes = Middleware(MetricsAtPath, registry=instruments.registry, key=settings.metrics_key)
        layers.insert(0, scrapes)  # no request of anybody's
    if door is not None:
        layers.append(Middleware(AtTheDoor, door=door))
    return [*layers, Middleware(UnexpectedErrors), Middleware(Direct, routers=(images.router, edits.router))]
