"""What every handler works with: the service behind the API, settings, storage."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import Request

from gateway.accounts.keyring import KeyRing
from gateway.api.edit_pictures import PictureLoader
from gateway.api.forms import FormReader
from gateway.cells.door import Door
from gateway.idempotency.once import Once
from gateway.jobs.desk import JobDesk
from gateway.limits.limiter import Limiter
from gateway.metering.meter import Meter
from gateway.pipeline_feed.feed import Feed
from gateway.service.interfaces import ImageService, OperatorService
from gateway.settings import Settings
from gateway.storage.room import Room
from gateway.storage.storage import Storage
from wire.record import record


@record(frozen=True, slots=True)
class Api:
    service: ImageService
    settings: Settings
    storage: Storage
    forms: FormReader
    loader: PictureLoader
    room: Room
    """For the uploads of all requests."""
    keys: KeyRing
    once: Once
    started: int
    """Unix time of the start, the ``created`` of every model."""
    operator: OperatorService | None = None
    limiter: Limiter = field(default_factory=Limiter)
    meter: Meter | None = None
    feed: Feed | None = None
    """Tells the page of the pipeline; None where it does not."""
    door: Door | None = None
    """None: new work is always taken."""
    desk: JobDesk | None = None
    """Where jobs are posted; None where no database is."""


def api_of(request: Request) -> Api:
    return cast(Api, request.app.state.api)


async def _api(
    request: Request,
) -> Api:  # async, or FastAPI would hand it to a thread: several times a bare request's cost
    return api_of(request)


ApiDep = Annotated[Api, Depends(_api)]
