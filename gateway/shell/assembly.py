"""Puts the gateway together from its settings: sockets, stage pool, scheduler, dispatcher, storage, database."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress

from gateway.accounts.keyring import KeyRing
from gateway.database.database import Database
from gateway.database.errors import DatabaseError
from gateway.database.keys import StoredKeys
from gateway.database.usage import Usage
from gateway.idempotency.once import open_once
from gateway.limits.budgets import Budgets
from gateway.limits.limiter import Limiter
from gateway.limits.shared import Shared
from gateway.metering.meter import Meter
from gateway.metering.overflow import Overflow
from gateway.service.decisions import Decisions
from gateway.service.dispatcher import Dispatcher, Outlets
from gateway.service.interfaces import BACKGROUND
from gateway.service.operator import Levers, Operator
from gateway.settings import InvalidSettings, Settings
from gateway.stages.liveness import PoolRules, Roster
from gateway.stages.pool import StagePool
from gateway.stages.prober import Prober
from gateway.stages.result_fetcher import ResultFetcher
from gateway.stages.sockets import BindError, Sockets
from gateway.stages.uploads import Uploads
from gateway.storage.room import Room
from gateway.storage.storage import open_storage
from scheduler.core import Scheduler
from scheduler.cost.profile import Profile, ProfileError, bundled, load
from scheduler.elastic.build import Elastic, elastic
from scheduler.elastic.settings import ElasticSettings, Ordering
from scheduler.policy import Policies
from scheduler.roles.gate import PolicySettings
from wire.control_codec import MAX_CONTROL_BYTES
from wire.transfer import MAX_FIELDS_BYTES

USAGE_FILE = "usage-waiting.jsonl"
USAGE_FILE_BYTES = 64 << 20
"""Some 200,000 records of use, while the database is away."""

BACKGROUND_SHARE = 1e-6
"""Of device time where others want any: their turn comes first whenever a device is free. Where nobody does, all."""


class Gateway:
    """All but HTTP. To be made on a running event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``BindError``, ``DatabaseRefused`` or ``InvalidSettings``."""
        chosen = elastic_parts(settings)
        self.storage = open_storage(settings)
        self.database = Database(settings)
        self._settings = settings
        self.keys = KeyRing(settings.api_keys, StoredKeys(self.database), anonymous=settings.anonymous)
        self._shared, self.limiter, self.meter = limits_and_usage(settings, self.database)
        incarnation = secrets.token_hex(8)
        self.once = open_once(settings, self.database, self.storage.objects, incarnation)
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
        self.room = Room(settings.uploads_max_bytes)
        self._uploads = Uploads(data, advertised, settings.curve_public_key, self.room)
        scheduler = Scheduler(incarnation, chosen.policies)
        decisions = Decisions()
        self.dispatcher = Dispatcher(
            scheduler,
            incarnation,
            Outlets(
                send=lambda server, message: self.pool.send(server, message),
                fetch=ResultFetcher(self._sockets).fetch,
                probe=Prober(self._sockets).probe,
                hold=self._uploads.hold,
                drop=self._uploads.drop,
            ),
            watch=lambda event, actions: decisions.note(event, actions, time.time()),
        )
        rules = PoolRules(
            incarnation,
            settings.heartbeat_seconds,
            settings.liveness_seconds,
            settings.max_stage_servers,
            settings.curve_allowed_keys if keys is not None else None,
        )
        self.pool = StagePool(control, Roster(rules), self.dispatcher.report)
        levers = Levers(self.dispatcher.order, self.pool.send, self.pool.vitals)
        self.operator = Operator(scheduler.view, chosen.roles, chosen.suspects, decisions, levers)

    async def open(self) -> None:
        """Migrate the database and learn the keys, if it can be reached. To be awaited before anything is served.

        Raises ``DatabaseRefused``, or ``InvalidSettings`` where nobody could be served.
        """
        try:
            with suppress(DatabaseError):  # it is in the log; ``run`` goes on trying
                await self.database.open()
                await self.keys.refresh()
            self._somebody_may_call()
        except BaseException:
            await self.close()
            raise

    def _somebody_may_call(self) -> None:
        if self.keys.empty and not self._settings.anonymous:
            raise InvalidSettings(
                f"host {self._settings.host} can be reached from other machines and there is no API key: make one with "
                "'python -m gateway keys create', set api_keys (DISAGFUSION_API_KEYS), "
                "or allow_anonymous (DISAGFUSION_ALLOW_ANONYMOUS=true) to serve everybody"
            )

    async def run(self) -> None:
        """Until cancelled. Any exception is a defect and must end the process."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sockets.authenticate(), name="authentication")
                tasks.create_task(self._uploads.run(), name="uploads")
                tasks.create_task(self.pool.run(), name="stage pool")
                tasks.create_task(self.storage.run(), name="storage")
                tasks.create_task(self.database.run(), name="database")
                tasks.create_task(self.keys.run(), name="keys")
                tasks.create_task(self.meter.run(), name="usage")
                if self._shared is not None:
                    tasks.create_task(self._shared.run(), name="shared limits")
                tasks.create_task(self.once.run(), name="answers")
                tasks.create_task(self.dispatcher.run(), name="dispatcher")
        finally:
            with suppress(DatabaseError):
                await self.keys.write_used()
            await self.meter.write()
            await self.close()

    async def close(self) -> None:
        """For a gateway that does not run: ``run`` does it itself."""
        self._sockets.close()
        await self.database.close()


def limits_and_usage(settings: Settings, database: Database) -> tuple[Shared | None, Limiter, Meter]:
    """The first and the last must run. Raises ``InvalidSettings``."""
    usage = Usage(database)
    meter = Meter(usage, Overflow(settings.state_folder() / USAGE_FILE, USAGE_FILE_BYTES), settings.usage_max_age_days)
    budgets = Budgets(usage, meter)
    meter.on_written = budgets.written
    url = settings.rate_limit_url
    shared = Shared(url.get_secret_value()) if url is not None else None
    return shared, Limiter(settings.default_limits(), shared=shared, budgets=budgets), meter


def policies(settings: Settings) -> Policies:
    """Raises ``InvalidSettings`` for a profile that cannot be used."""
    return elastic_parts(settings).policies


def elastic_parts(settings: Settings) -> Elastic:
    """Raises ``InvalidSettings`` for a profile that cannot be used."""
    chosen = elastic(elastic_settings(settings), (*bundled(), *_profiles(settings)))
    chosen.policies.max_failures = settings.max_attempts
    return chosen


def elastic_settings(settings: Settings) -> ElasticSettings:
    return ElasticSettings(
        ordering=Ordering(settings.order),
        tenant_shares={**settings.tenant_shares, BACKGROUND: BACKGROUND_SHARE},
        max_requests=settings.max_waiting_requests,
        max_batch=settings.max_batch,
        batch_seeded=settings.batch_seeded,
        preemption=settings.preemption,
        elastic_roles=settings.elastic_roles,
        roles=PolicySettings(
            interval_seconds=settings.role_interval_seconds,
            dwell_seconds=settings.role_dwell_seconds,
            exclusive=settings.exclusive_roles,
        ),
    )


def _profiles(settings: Settings) -> list[Profile]:
    try:
        return [load(path) for path in settings.profiles]
    except ProfileError as error:
        raise InvalidSettings(f"DISAGFUSION_PROFILES: {error}") from error
