"""The shell around ``StageCore``: feeds it what sockets, threads, timers and signals report, and does what it says."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from stage_server.data.consumer import Consumer
from stage_server.data.mailbox import Mailbox
from stage_server.data.prober import prepare, try_peer
from stage_server.data.store import OutputStore, OutputTooLarge
from stage_server.engine.base import Engine
from stage_server.runtime.baton import Baton
from stage_server.runtime.control import ControlSocket, Curve
from stage_server.runtime.core import CoreTimes, StageCore
from stage_server.runtime.credits import PREFETCHED
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
    ReadAhead,
    Received,
    Reconnect,
    RoomFreed,
    Send,
    Stop,
    Stopped,
    Surrender,
    Surrendered,
    Terminate,
    Tick,
    Tried,
    Try,
    Warn,
)
from stage_server.runtime.role_loader import RoleLoader, Turns
from stage_server.runtime.roles import in_order
from stage_server.runtime.sensors import Sensors
from stage_server.runtime.worker import Plant, Worker
from wire.dial import MUTE, dial
from wire.to_gateway import Goodbye, Heartbeat, Hello, PeerTried, RolesFailed, RolesReady, ToGateway
from wire.to_stage import TryPeer, Welcome
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
    find: Callable[[TryPeer], str] = lambda peer: try_peer(peer, None)
    """What is in the way to a peer's data socket; empty if nothing is."""
    prefetched: int = PREFETCHED
    """Attempts of a role that may be here beside those that compute."""
    baton: Baton = field(default_factory=Baton)
    """Servers of several models in one process have one."""
    sensors: Sensors = field(default_factory=Sensors)
    """Of the device."""
    mailbox: Mailbox = field(default_factory=Mailbox)
    """Read by those with whom guided steps are shared; of the process."""
    on_welcome: Callable[[], None] = lambda: None
    """Called whenever a gateway has let the server in."""
    on_told: Callable[[str, ToGateway], None] = lambda *_: None
    """Called with the model's name and each message to the gateway."""


class StageServer:
    """``run`` once, on an event loop of its own."""

    def __init__(
        self,
        hello: Hello,
        gateways: Sequence[str],
        equipment: Equipment,
        times: CoreTimes,
        curve: Curve | None = None,
    ) -> None:
        """``hello.roles`` are resident already; ``gateways`` are endpoints. Raises ``BadEndpoint``."""
        self._equipment = equipment
        self._baton = equipment.baton
        self._model = hello.model
        self._of_model = f" of {hello.model.name}" if hello.device else ""
        """For people, where the process serves several."""
        self._plant = Plant(
            equipment.engine,
            equipment.baton,
            equipment.store,
            equipment.consumer,
            self._post,
            equipment.room,
            {role: info.together for role, info in hello.capable.items()},
            hello.model.default_guidance,
            hello.model.key,
            mailbox=equipment.mailbox,
        )
        self._core = StageCore(hello, gateways, self, times, equipment.prefetched)
        self._control = ControlSocket(gateways, f"{hello.name}/{hello.incarnation}", curve, self._on)
        prepare()
        self._workers: dict[JobKey, Worker] = {}
        self._loader = RoleLoader(
            equipment.engine,
            equipment.store,
            equipment.largest,
            lambda: Turns(self._baton, lambda: self._baton.latest, self._post),
            self._post,
        )
        self._pending: deque[Event] = deque()
        self._handling = False
        self._posted: deque[Event] = deque()
        """By threads, until the event loop takes them; it has been told of them if it is woken."""
        self._is_woken = False
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = inf

    async def run(self) -> int:
        """Serve until told to leave; the exit status."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        async with asyncio.TaskGroup() as self._tasks:
            self._do(self._core.start(self._loop.time()))
            self._arm()
            end = await self._ended
            self._disarm()
            hands_over = end.code == 0 or end.hands_over
            if hands_over:
                await self._control.flush(FAREWELL_SECONDS)
            await self._control.close(int(FAREWELL_SECONDS * 1000) if hands_over else 0)
        self._plant.threads.close()
        log.log(logging.ERROR if end.code else logging.INFO, "%s", end.message)
        return end.code

    def terminate(self) -> None:
        """Finish what was accepted, then leave; the second time at once. To be called on the event loop."""
        self._on(Terminate())

    def abandon(self, why: str) -> None:
        """Leave at once, whatever is left: the process cannot go on. To be called on the event loop."""
        if self._ended.done():
            return
        self._send(Goodbye())
        self._perform(Exit(1, why, hands_over=True))

    def thread_died(self, hook: threading.ExceptHookArgs) -> None:
        """A fault that nobody foresaw ends the server: better none than one that forgets a job."""
        name = hook.thread.name if hook.thread else "a thread"
        log.critical("%s died", name, exc_info=hook.exc_value)
        self._loop.call_soon_threadsafe(self._perform, Exit(1, f"{name} died: {hook.exc_value!r}"))

    @property
    def model(self) -> str:
        """Its name."""
        return self._model.name

    @property
    def idle(self) -> bool:
        """No thread is left that uses the engine."""
        return not self._workers and not self._loader.is_busy

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
            warm=in_order(self._equipment.engine.warm),
            device_busy_seconds=self._baton.busy_seconds(),
            temperature_celsius=self._equipment.sensors.temperature_celsius(),
            power_watts=self._equipment.sensors.power_watts(),
        )

    # --- events ---

    def _post(self, event: Event) -> None:
        """From any thread."""
        self._posted.append(event)
        if not self._is_woken and not self._loop.is_closed():  # a job's thread may outlive a server that left early
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._take_posted)

    def _take_posted(self) -> None:
        self._is_woken = False  # first: what is posted from now on may come too late for this turn
        while self._posted:
            self._pending.append(self._posted.popleft())
        self._work_off()

    def _on(self, event: Event) -> None:
        self._pending.append(event)
        self._work_off()

    def _work_off(self) -> None:
        """Doing one event's effects may bring the next: they are taken one after the other."""
        if self._handling:
            return
        self._handling = True
        while self._pending and not self._ended.done():
            while self._pending and not self._ended.done():
                event = self._pending.popleft()
                self._note(event)
                self._do(self._core.take(event, self._loop.time()))
            self._do(self._core.settle(self._loop.time()))
        self._handling = False
        self._arm()

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._perform(effect)

    def _arm(self) -> None:
        """One that wants to be woken later than it will be is woken anyway, by ``_ring``, and armed anew then."""
        due = self._core.next_wakeup()
        if due < self._armed_for and not self._ended.done():
            self._disarm()
            self._armed_for = due
            self._timer = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._armed_for = inf
        if self._core.next_wakeup() <= self._loop.time():
            self._on(Tick())
        else:
            self._arm()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(message):
                self._send(message)
            case Begin():
                self._begin(effect)
            case Stop(job) | Surrender(job):
                worker = self._workers[job]
                (worker.stop if isinstance(effect, Stop) else worker.hand_over)()
            case Drop(handles):
                self._equipment.store.release(handles)
                self._pending.append(RoomFreed())
            case LoadRoles() | ReadAhead():
                self._loader.begin(effect)
            case Reconnect():
                self._control.reopen(self._tasks, effect)
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
        self._equipment.on_told(self._model.name, message)
        match message:
            case RolesReady(roles=roles, load_seconds=seconds):
                log.info(
                    "holds %s%s, after %.2f s of loading and a stop of %.3f s",
                    ", ".join(roles) or "nothing", self._of_model, seconds, message.stopped_seconds,
                )  # fmt: skip
            case RolesFailed(roles=roles, message=text):
                log.warning("keeps %s%s: %s", ", ".join(roles) or "nothing", self._of_model, text)
            case _:
                log.debug("-> %s", type(message).__name__)

    def _begin(self, effect: Begin) -> None:
        worker = self._workers[effect.job] = Worker(effect, self._plant)
        worker.start()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _note(self, event: Event) -> None:
        match event:
            case Published(job=job, timings=took):
                text = "done; fetch %.3f s, wait %.3f s, compute %.3f s, publish %.3f s"
                self._over(logging.INFO, job, text, took.fetch, took.wait, took.compute, took.publish)
            case Broke(job, code, message):
                self._over(logging.WARNING, job, "%s: %s", code, message)
            case Stopped(job):
                self._over(logging.INFO, job, "stopped")
            case Surrendered(job, step):
                self._over(logging.INFO, job, "handed over after step %d", step)
            case Received(message=Welcome()):
                self._equipment.on_welcome()
            case _:
                log.debug("%s", type(event).__name__)

    def _over(self, level: int, job: JobKey, text: str, *values: object) -> None:
        worker = self._workers.pop(job)
        log.log(level, f"%s: {text}", worker.name, *values, extra={"about": worker.about})

    # --- other threads ---

    def _warn_of(self, warning: Warn) -> None:
        log.warning("%s: %s", warning.text, dial(warning.dial) or MUTE)

    def _try(self, peer: TryPeer) -> None:
        fault = self._equipment.find(peer)
        if fault:
            log.warning("%s cannot be reached from here: %s", peer.server, fault)
        self._post(Tried(PeerTried(server=peer.server, detail=fault)))
