"""Puts the gateway together from its settings: sockets, stage pool, data plane, scheduler, dispatcher."""

from __future__ import annotations

import asyncio
import secrets

from gateway.data_plane import ResultFetcher, Uploads
from gateway.dispatcher import Dispatcher, Outlets
from gateway.liveness import PoolRules, Roster
from gateway.settings import Settings
from gateway.sockets import BindError, Sockets
from gateway.stage_pool import StagePool
from scheduler.core import Scheduler
from scheduler.cost.model import CostModel
from scheduler.cost.profile import bundled
from scheduler.policy import AdmitUpTo, Policies
from wire.codec import MAX_CONTROL_BYTES
from wire.transfer import MAX_FIELDS_BYTES


class Gateway:
    """All but HTTP. To be made on a running event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``BindError``."""
        incarnation = secrets.token_hex(8)
        keys = settings.curve_keys()
        self._sockets = Sockets(
            keys=keys, allowed=settings.curve_allowed_keys, allow_plaintext=settings.allow_plaintext
        )
        try:
            control = self._sockets.router(settings.control_bind, "control", MAX_CONTROL_BYTES)
            data = self._sockets.router(settings.data_bind, "data", MAX_FIELDS_BYTES)
        except BindError:
            self._sockets.close()
            raise
        advertised = settings.data_advertise or data.endpoint
        self._uploads = Uploads(data, advertised, settings.curve_public_key, settings.uploads_max_bytes)
        self.dispatcher = Dispatcher(
            Scheduler(incarnation, policies(settings)),
            incarnation,
            Outlets(
                send=lambda server, message: self.pool.send(server, message),
                fetch=ResultFetcher(self._sockets).fetch,
                hold=self._uploads.hold,
                drop=self._uploads.drop,
            ),
        )
        rules = PoolRules(
            incarnation,
            settings.heartbeat_seconds,
            settings.liveness_seconds,
            settings.max_stage_servers,
            settings.curve_allowed_keys if keys is not None else None,
        )
        self.pool = StagePool(control, Roster(rules), self.dispatcher.report)

    async def run(self) -> None:
        """Until cancelled. Any exception is a defect and must end the process."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sockets.authenticate(), name="authentication")
                tasks.create_task(self._uploads.run(), name="uploads")
                tasks.create_task(self.pool.run(), name="stage pool")
                tasks.create_task(self.dispatcher.run(), name="dispatcher")
        finally:
            self._sockets.close()


def policies(settings: Settings) -> Policies:
    return Policies(
        admission=AdmitUpTo(settings.max_waiting_requests),
        max_failures=settings.max_attempts,
        cost=CostModel(bundled()),
    )
