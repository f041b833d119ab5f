"""What stage servers report, noted where it concerns: in the records of attempts, the catalogue, with who listens."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.service import translate
from gateway.service.attempts import Attempts
from gateway.service.catalogue import Catalogue
from gateway.service.embeddings import Embeddings, Releases
from gateway.service.interfaces import Progress
from gateway.service.open_requests import OpenRequests
from gateway.service.under_way import UnderWay
from scheduler import events as ev
from wire import to_gateway
from wire.types import Epoch, Role, ServerId

log = logging.getLogger(__name__)

_FOR_THE_SCHEDULER = (to_gateway.Fetched, to_gateway.Grant)
"""Of which it alone makes something: most of them."""


class Reports:
    """``release``: of encodings that are kept no longer."""

    def __init__(
        self,
        attempts: Attempts,
        catalogue: Catalogue,
        requests: OpenRequests,
        embeddings: Embeddings,
        under_way: UnderWay,
        release: Callable[[Releases], None],
    ) -> None:
        self._attempts = attempts
        self._catalogue = catalogue
        self._requests = requests
        self._embeddings = embeddings
        self._under_way = under_way
        self._release = release

    def heard(self, server: ServerId, message: to_gateway.ToGateway, now: float) -> ev.Event | None:
        """What the scheduler is told of it, if anything."""
        if isinstance(message, _FOR_THE_SCHEDULER):
            return translate.event(server, message)
        match message:
            case to_gateway.Started(epoch=epoch) | to_gateway.Paused(epoch=epoch):
                is_paused = isinstance(message, to_gateway.Paused)
                (self._attempts.paused if is_paused else self._attempts.started)(server, epoch, now)
            case to_gateway.StageDone():
                self._done(server, message, now)
            case to_gateway.StageFailed():
                log.warning("%s: attempt %d: %s: %s", server, message.epoch.counter, message.code, message.message)
                message = self._failed(server, message, now)
            case to_gateway.Heartbeat() | to_gateway.Leaving():
                self._about_store(server, message)
            case to_gateway.HandedOver():
                self._attempts.handed_over(server, message, now)
            case to_gateway.StageCancelled():
                self._attempts.failed(server, message.epoch, "cancelled", now)
            case to_gateway.Progress(epoch=epoch, step=step, steps=steps):
                self._progressed(server, epoch, step, steps)
            case to_gateway.RolesReady() | to_gateway.RolesFailed():
                self._holds(server, message)
        return translate.event(server, message)

    def _holds(self, server: ServerId, message: to_gateway.RolesReady | to_gateway.RolesFailed) -> None:
        roles = ", ".join(message.roles)
        if isinstance(message, to_gateway.RolesReady):
            log.info("%s holds %s after %.2f s of loading", server, roles, message.load_seconds)
        else:
            log.warning("%s keeps %s: %s", server, roles, message.message)
        self._catalogue.holds(server, message.roles)

    def _about_store(self, server: ServerId, message: to_gateway.Heartbeat | to_gateway.Leaving) -> None:
        if isinstance(message, to_gateway.Leaving):
            self._release(self._embeddings.leaves(server))
        else:
            self._release(self._embeddings.store(server, message.store_capacity, is_full=bool(message.blocked)))

    def _done(self, server: ServerId, message: to_gateway.StageDone, now: float) -> None:
        job = self._attempts.job(server, message.epoch)
        traceparent = self._attempts.traceparent(message.epoch)
        took = self._attempts.done(server, message, now)
        entry = self._requests.owner_of(job.spec.id) if job is not None else None
        if job is not None and entry is not None and (key := entry.encodings.get(job.spec.id)) is not None:
            self._release(self._embeddings.made(key, server, message, traceparent))
            self._under_way.made(key, entry.record.graph.spec.id)
        if job is not None and entry is not None and job.spec.role is Role.ENHANCER:
            self._requests.rewritten(entry, message.prompt)
        if took is not None and entry is not None:
            entry.listener(took)

    def _failed(self, server: ServerId, message: to_gateway.StageFailed, now: float) -> to_gateway.StageFailed:
        job = self._attempts.job(server, message.epoch)
        self._attempts.failed(server, message.epoch, message.code, now)
        entry = self._requests.owner_of(job.spec.id) if job is not None else None
        if entry is None:
            return message
        told, releases = self._embeddings.failed(entry.record.graph.spec.id, message)
        self._release(releases)
        return told

    def _progressed(self, server: ServerId, epoch: Epoch, step: int, steps: int) -> None:
        job = self._attempts.job(server, epoch)
        entry = self._requests.owner_of(job.spec.id) if job is not None else None
        if job is not None and entry is not None:
            entry.listener(Progress(job.image or 0, step, steps))
