"""The shell around ``StageCore``: feeds it what sockets, threads, timers and signals report, and does what it says."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

from stage_server.data.consumer import Consumer
from stage_server.data.prober import try_peer
from stage_server.data.store import OutputStore, OutputTooLarge
from stage_server.engine.base import Engine, LoadError
from stage_server.runtime.baton import Baton, Ticket
from stage_server.runtime.control import ControlSocket, Curve
from stage_server.runtime.core import CoreTimes, StageCore
from stage_server.runtime.events import (
    Begin,
    Broke,
    Drop,
    Effect,
    Event,
    Exit,
    Inform,
    JobKey,
    LoadRoles,
    Published,
    Reconnect,
    RolesBroke,
    RolesLoaded,
    RoomFreed,
    Send,
    Stop,
    Stopped,
    Terminate,
    Tick,
    Tried,
    Try,
    Warn,
)
from stage_server.runtime.worker import Plant, Worker
from wire.dial import MUTE, dial
from wire.security import CurveKeys
from wire.to_gateway import Heartbeat, Hello, PeerTried, RolesFailed, RolesReady, ToGateway
from wire.to_stage import TryPeer
from wire.types import Role

FAREWELL_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a stage server works with. Whoever makes it closes it."""

    engine: Engine
    store: OutputStore
    consumer: Consumer
    room: threading.Condition
    """Notified by the store's ``on_room``."""
    largest: Mapping[Role, int]
    """Bytes of the largest output that a job of each role can have."""
    keys: CurveKeys | None = None


class StageServer:
    """``run`` once, on an event loop of its own."""

    def __init__(
        self, hello: Hello, endpoint: str, equipment: Equipment, times: CoreTimes, curve: Curve | None = None
    ) -> None:
        """``hello.roles`` are resident already. Raises ``BadEndpoint``."""
        self._equipment = equipment
        self._baton = Baton()
        self._core = StageCore(hello, endpoint, self, times)
        self._control = ControlSocket(endpoint, f"{hello.name}/{hello.incarnation}", curve, self._on)
        self._workers: dict[JobKey, Worker] = {}
        self._last_job = JobKey(0)
        self._pending: deque[Event] = deque()
        self._handling = False
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> int:
        """Serve until told to leave; the exit status."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        async with asyncio.TaskGroup() as self._tasks:
            self._do(self._core.start(self._loop.time()))
            end = await self._ended
            self._disarm()
            if end.code == 0:
                await self._control.flush(FAREWELL_SECONDS)
            await self._control.close(int(FAREWELL_SECONDS * 1000) if end.code == 0 else 0)
        log.log(logging.ERROR if end.code else logging.INFO, "%s", end.message)
        return end.code

    def terminate(self) -> None:
        """Finish what was accepted, then leave; the second time at once. To be called on the event loop."""
        self._on(Terminate())

    def thread_died(self, hook: threading.ExceptHookArgs) -> None:
        """A fault that nobody foresaw ends the server: better none than one that forgets a job."""
        name = hook.thread.name if hook.thread else "a thread"
        log.critical("%s died", name, exc_info=hook.exc_value)
        self._loop.call_soon_threadsafe(self._perform, Exit(1, f"{name} died: {hook.exc_value!r}"))

    @property
    def idle(self) -> bool:
        """No job's thread is left."""
        return not self._workers

    # --- what the core asks (Meters) ---

    def room(self, role: Role, outputs: int) -> bool:
        store = self._equipment.store
        try:
            reservation = store.reserve(role, outputs * self._equipment.largest[role])
        except OutputTooLarge:
            return False
        if reservation is not None:
            store.close(reservation)
        return reservation is not None

    def heartbeat(self, sequence: int) -> Heartbeat:
        statistics = self._equipment.store.statistics()
        return Heartbeat(
            sequence=sequence,
            store_bytes=statistics.used,
            store_capacity=statistics.capacity,
            device_memory_bytes=self._equipment.engine.peak_bytes(),
        )

    # --- events ---

    def _post(self, event: Event) -> None:
        """From any thread."""
        if not self._loop.is_closed():  # threads of jobs may outlive a server that left with work unfinished
            self._loop.call_soon_threadsafe(self._on, event)

    def _on(self, event: Event) -> None:
        """Doing one event's effects may bring the next: they are taken one after the other."""
        self._pending.append(event)
        if self._handling:
            return
        self._handling = True
        while self._pending and not self._ended.done():
            event = self._pending.popleft()
            self._note(event)
            self._do(self._core.handle(event, self._loop.time()))
        self._handling = False

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._perform(effect)
        self._disarm()
        if not self._ended.done():
            self._timer = self._loop.call_at(self._core.next_wakeup(), self._on, Tick())

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(message):
                self._send(message)
            case Begin():
                self._begin(effect)
            case Stop(job):
                self._workers[job].stop()
            case Drop(handles):
                self._equipment.store.release(handles)
                self._pending.append(RoomFreed())
            case LoadRoles(roles):
                threading.Thread(target=self._load, args=(roles,), name="roles", daemon=True).start()
            case Reconnect(delay):
                self._control.reopen(self._tasks, delay)
            case Inform() | Warn() | Try():
                self._look_into(effect)
            case Exit():
                if not self._ended.done():
                    self._ended.set_result(effect)

    def _look_into(self, effect: Inform | Warn | Try) -> None:
        """To dial takes seconds, so a thread does it."""
        match effect:
            case Inform(text):
                log.info("%s", text)
            case Warn(text, ""):
                log.warning("%s", text)
            case Warn():
                threading.Thread(target=self._warn_of, args=(effect,), name="dial", daemon=True).start()
            case Try(peer):
                threading.Thread(target=self._try, args=(peer,), name="trial", daemon=True).start()

    def _send(self, message: ToGateway) -> None:
        self._control.send(message)
        match message:
            case RolesReady(roles=roles, load_seconds=seconds):
                log.info("holds %s, after %.2f s of loading", ", ".join(roles), seconds)
            case RolesFailed(roles=roles, message=text):
                log.warning("keeps %s: %s", ", ".join(roles), text)
            case _:
                log.debug("-> %s", type(message).__name__)

    def _begin(self, effect: Begin) -> None:
        tools = self._equipment
        plant = Plant(tools.engine, self._baton, tools.store, tools.consumer, self._post, tools.room)
        self._last_job = effect.job
        self._workers[effect.job] = Worker(effect, plant)
        self._workers[effect.job].start()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _note(self, event: Event) -> None:
        match event:
            case Published(job, _, timings):
                log.info(
                    "%s: done; fetch %.3f s, wait %.3f s, compute %.3f s, publish %.3f s",
                    self._workers.pop(job).name, timings.fetch, timings.wait, timings.compute, timings.publish,
                )  # fmt: skip
            case Broke(job, code, message):
                log.warning("%s: %s: %s", self._workers.pop(job).name, code, message)
            case Stopped(job):
                log.info("%s: stopped", self._workers.pop(job).name)
            case _:
                log.debug("%s", type(event).__name__)

    # --- other threads ---

    def _warn_of(self, warning: Warn) -> None:
        log.warning("%s: %s", warning.text, dial(warning.dial) or MUTE)

    def _try(self, peer: TryPeer) -> None:
        fault = try_peer(peer, self._equipment.keys)
        if fault:
            log.warning("%s cannot be reached from here: %s", peer.server, fault)
        self._post(Tried(PeerTried(server=peer.server, detail=fault)))

    def _load(self, roles: frozenset[Role]) -> None:
        """Change the roles with the device in hand, after the jobs that are here already."""
        ticket = Ticket(self._last_job)
        self._baton.line_up(ticket)
        try:
            self._baton.take(ticket)
            outcome = self._exchange(roles)
        finally:
            self._baton.leave(ticket)
        self._post(outcome)

    def _exchange(self, roles: frozenset[Role]) -> RolesLoaded | RolesBroke:
        engine = self._equipment.engine
        former, began = engine.roles, monotonic()
        try:
            self._resize(roles)
            engine.set_roles(roles)
        except (LoadError, OutputTooLarge) as error:
            self._resize(former)
            return RolesBroke(str(error))
        return RolesLoaded(roles, monotonic() - began)

    def _resize(self, roles: frozenset[Role]) -> None:
        largest = self._equipment.largest
        self._equipment.store.set_roles({role: largest[role] for role in Role if role in roles})
