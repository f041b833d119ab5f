"""Puts the gateway together from its settings: sockets, stage pool, scheduler, dispatcher, storage, database."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

from gateway.accounts.keyring import KeyRing
from gateway.cells.door import Door
from gateway.cells.keeper import Keeper
from gateway.cells.keeper import Levers as CellLevers
from gateway.cells.own import OwnCell
from gateway.database.database import Database
from gateway.database.errors import DatabaseError
from gateway.database.keys import StoredKeys
from gateway.database.usage import Usage
from gateway.idempotency.once import open_once
from gateway.limits.budgets import Budgets
from gateway.limits.limiter import Limiter
from gateway.limits.shared import Shared
from gateway.metering.journal import Journal
from gateway.metering.meter import Meter
from gateway.metering.overflow import Overflow
from gateway.metrics.fleet import Fleet
from gateway.metrics.instruments import Instruments
from gateway.metrics.loop_lag import watch_loop
from gateway.metrics.pipeline import PipelineCounts
from gateway.pipeline_feed.feed import Feed
from gateway.pipeline_feed.snapshot import Sources
from gateway.service.decisions import Decisions
from gateway.service.dispatcher import Dispatcher, Watch
from gateway.service.embeddings import Embeddings
from gateway.service.interfaces import BACKGROUND
from gateway.service.operator import Levers, Operator
from gateway.service.outlets import Outlets
from gateway.service.scaling import Scaling
from gateway.settings import InvalidSettings, Settings
from gateway.stages.liveness import PoolRules, Roster
from gateway.stages.paths import Pathfinder
from gateway.stages.pool import StagePool
from gateway.stages.prober import Prober
from gateway.stages.result_fetcher import ResultFetcher
from gateway.stages.sockets import BindError, Sockets, Unreachable
from gateway.stages.uploads import Uploads
from gateway.storage.room import Room
from gateway.storage.storage import open_storage
from scheduler import actions as act
from scheduler import events as ev
from scheduler.core import Scheduler
from scheduler.cost.profile import Profile, ProfileError, bundled, load
from scheduler.elastic.build import Elastic, elastic
from scheduler.elastic.settings import ElasticSettings, Ordering
from scheduler.policy import Policies
from scheduler.roles.gate import PolicySettings
from scheduler.scaling.pools import Pool, ScalingSettings
from scheduler.scaling.scaler import Autoscaler
from scheduler.view import View
from wire.control_codec import MAX_CONTROL_BYTES
from wire.doors import Doors
from wire.transfer import MAX_FIELDS_BYTES

USAGE_FILE = "usage-waiting.jsonl"
USAGE_JOURNAL = "usage-journal.jsonl"
USAGE_FILE_BYTES = 64 << 20
"""Some 200,000 records of use, while the database is away."""

BACKGROUND_SHARE = 1e-6
"""Of device time where others want any: their turn comes first whenever a device is free. Where nobody does, all."""


class Gateway:
    """All but HTTP. To be made on a running event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``BindError``, ``DatabaseRefused`` or ``InvalidSettings``."""
        chosen = elastic_parts(settings)
        self.storage = open_storage(settings, lambda tenant: self.keys.has_others(tenant))
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
        self.autoscaler = _autoscaler(settings, scheduler.view)
        chosen.policies.coming.follow(self.autoscaler)
        decisions = Decisions()
        is_watched = settings.page and settings.admin_key is not None
        desk = Sources(lambda: self.operator.servers(), lambda: self.operator.plan())
        self.feed = Feed(scheduler.view, desk) if is_watched else None
        self.instruments = Instruments() if settings.metrics else None
        fetcher = ResultFetcher(self._sockets)
        self._doors = Doors(asyncio.get_running_loop(), fetcher.drop)
        paths = Pathfinder(Prober(self._sockets), fetcher, self._doors)
        self.dispatcher = Dispatcher(
            scheduler,
            incarnation,
            Outlets(
                send=lambda server, message: self.pool.send(server, message),
                fetch=paths.fetch,
                probe=paths.probe,
                hold=self._uploads.hold,
                drop=self._uploads.drop,
            ),
            watch=_watch(decisions, self.feed, self.instruments, self.autoscaler),
            embeddings=Embeddings(settings.embedding_cache_bytes, shared=settings.share_embeddings),
            awaited=self.autoscaler.awaits,
        )
        rules = PoolRules(
            incarnation,
            settings.heartbeat_seconds,
            settings.liveness_seconds,
            settings.max_stage_servers,
            settings.curve_allowed_keys if keys is not None else None,
        )
        name = settings.cell or f"{socket.gethostname()}:{control.endpoint.rpartition(':')[2]}"
        cell = OwnCell(
            name,
            incarnation,
            scheduler.view,
            moves=lambda server: self.pool.moves(server),
            ready=self.dispatcher.ready,
            under_way=lambda: self.door.under_way,
        )
        self.pool = StagePool(control, Roster(rules), self.dispatcher.report, cell.state)
        self.cells = self._keeper(cell)
        self.door = Door(self.cells.served_elsewhere)
        levers = Levers(self.dispatcher.order, self.pool.send, self.pool.vitals)
        self.scaling = Scaling(self.autoscaler, scheduler.view, levers)
        self.operator = Operator(scheduler.view, chosen.roles, chosen.suspects, decisions, levers, self.scaling.told)
        if self.instruments is not None:
            self.instruments.registry.register(
                Fleet(
                    scheduler.view,
                    decisions,
                    chosen.suspects,
                    self.pool.vitals,
                    self.dispatcher.ready,
                    lambda: self.autoscaler.latest,
                )
            )

    def _keeper(self, cell: OwnCell) -> Keeper:
        """Raises ``InvalidSettings``."""
        levers = CellLevers(self.dispatcher.order, self.pool.send, self.dispatcher.turn_away)
        peers, public_key = self._settings.peers, self._settings.curve_public_key
        try:
            return Keeper(cell, peers, self._sockets, public_key, levers)
        except Unreachable as error:
            self._sockets.close()
            raise InvalidSettings(f"DISAGFUSION_PEERS: {error}") from error

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
                if self.feed is not None:
                    tasks.create_task(self.feed.run(), name="pipeline feed")
                if self.instruments is not None:
                    tasks.create_task(watch_loop(self.instruments.loop_lag), name="event loop's lag")
                if self._settings.pools:
                    tasks.create_task(self.scaling.run(), name="scaling")
                tasks.create_task(self.once.run(), name="answers")
                tasks.create_task(self.dispatcher.run(), name="dispatcher")
                tasks.create_task(self.cells.run(), name="cells")
        finally:
            with suppress(DatabaseError):
                await self.keys.write_used()
            await self.meter.write()
            await self.close()

    async def close(self) -> None:
        """For a gateway that does not run: ``run`` does it itself."""
        self._sockets.close()
        await self._doors.close()
        self.meter.close()
        await self.database.close()


def _watch(decisions: Decisions, feed: Feed | None, instruments: Instruments | None, autoscaler: Autoscaler) -> Watch:
    counts = PipelineCounts(instruments) if instruments is not None else None

    def note(event: ev.Event, actions: Sequence[act.Action]) -> None:
        at = time.time()
        decisions.note(event, actions, at)
        autoscaler.note(event, asyncio.get_running_loop().time())
        if counts is not None:
            counts.note(event, actions)
        if feed is not None:
            feed.note(event, actions, at)

    return note


def limits_and_usage(settings: Settings, database: Database) -> tuple[Shared | None, Limiter, Meter]:
    """The first and the last must run. Raises ``InvalidSettings``."""
    usage = Usage(database)
    folder = settings.state_folder()
    overflow = Overflow(folder / USAGE_FILE, USAGE_FILE_BYTES)
    meter = Meter(usage, overflow, settings.usage_max_age_days, journal=Journal(folder / USAGE_JOURNAL, overflow))
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


def _autoscaler(settings: Settings, view: View) -> Autoscaler:
    return Autoscaler(
        [Pool(name, **dict(table)) for name, table in settings.pools.items()],
        view,
        ScalingSettings(
            dwell_seconds=settings.scaling_dwell_seconds,
            idle_seconds=settings.scaling_idle_seconds,
            most_wait_seconds=settings.scaling_wait_seconds,
        ),
    )


def elastic_settings(settings: Settings) -> ElasticSettings:
    return ElasticSettings(
        ordering=Ordering(settings.order),
        tenant_shares={**settings.tenant_shares, BACKGROUND: BACKGROUND_SHARE},
        max_requests=settings.max_waiting_requests,
        max_batch=settings.max_batch,
        preemption=settings.preemption,
        share_guidance=settings.share_guidance,
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
