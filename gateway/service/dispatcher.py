"""The scheduler's shell: requests and stage servers' messages go in as events, actions come out as messages.

One task takes events in turn, so nothing else ever sees a half-made decision. It decides nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from gateway.service import failures, graph, translate
from gateway.service.attempts import Attempts, Record
from gateway.service.catalogue import Catalogue
from gateway.service.instructions import Instructions
from gateway.service.interfaces import (
    Admitted,
    Finished,
    ImageRequest,
    Listener,
    ModelNotFound,
    NoCapacity,
    Partial,
    Place,
    Progress,
    Ready,
    ServiceError,
    unheard,
)
from gateway.service.pictures import Picture, Pictures
from gateway.stages.liveness import Heard, Joined, Lost, Report
from gateway.storage.room import RoomTaken
from scheduler import actions as act
from scheduler import events as ev
from scheduler.reach import GATEWAY
from scheduler.roles.problem import Infeasible, Problem
from scheduler.roles.solver import plan
from scheduler.standing import Standing
from wire import to_gateway, to_stage
from wire.params import ModelInfo
from wire.to_stage import InputRef, ToStage, TryPeer
from wire.types import Epoch, Handle, JobId, RequestId, Role, ServerId

MAX_EVENTS = 100_000
"""Waiting to be handled. More mean that the scheduler has come to a standstill, which ends the process."""

UPLOADS_RETRY_SECONDS = 5.0

CURE = (
    "Check --data-bind and --data-advertise of the server at that address, the firewalls between the two machines, and "
    "CURVE keys; it is tried again now and then"
)

log = logging.getLogger(__name__)


class Decider(Protocol):
    """``scheduler.core.Scheduler``."""

    def handle(self, event: ev.Event, now: float) -> list[act.Action]: ...

    def next_wakeup(self) -> float | None: ...

    def standing(self, request_id: RequestId, now: float) -> Standing | None: ...


@dataclass(frozen=True, slots=True)
class Outlets:
    """What the dispatcher acts through."""

    send: Callable[[ServerId, ToStage], None]
    fetch: Callable[[InputRef], Awaitable[bytes]]
    """A finished picture; raises ``InputLost``."""
    probe: Callable[[TryPeer], Awaitable[str]]
    """What is in the way to a server's data socket; empty if nothing is."""
    hold: Callable[[bytes], InputRef]
    """Keep an uploaded picture for stage servers; raises ``RoomTaken``."""
    drop: Callable[[Handle], None]


@dataclass(slots=True)
class _Open:
    """A request between ``generate`` and its end."""

    record: Record
    outcome: asyncio.Future[Finished]
    uploads: tuple[InputRef, ...]
    listener: Listener
    predicted_seconds: float = 0.0
    pictures: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Order:
    """Of an operator."""

    judge: Callable[[], ev.Event | None]
    outcome: asyncio.Future[None]


Watch = Callable[[ev.Event, Sequence[act.Action]], None]
"""Told every event and what is done about it."""


class Dispatcher:
    """Implements ``gateway.service.interfaces.ImageService``. ``gateway`` is this process's incarnation."""

    def __init__(
        self, scheduler: Decider, gateway: str, outlets: Outlets, watch: Watch = lambda _event, _actions: None
    ) -> None:
        self._scheduler = scheduler
        self._gateway = gateway
        self._outlets = outlets
        self._watch = watch
        self._events: asyncio.Queue[ev.Event | Report | Picture | _Order] = asyncio.Queue(MAX_EVENTS)
        self._catalogue = Catalogue()
        self._servers: dict[ServerId, to_gateway.Hello] = {}
        self._requests: dict[RequestId, _Open] = {}
        self._owners: dict[JobId, _Open] = {}
        self._attempts = Attempts()
        self._instructions = Instructions(
            outlets.send, self._servers, lambda job: self._owners[job].record, self._attempts
        )
        self._pictures = Pictures(outlets.fetch, self._events.put_nowait)
        self._first_ready = asyncio.Event()

    # --- ImageService -------------------------------------------------------------------------------------------------

    def models(self) -> tuple[ModelInfo, ...]:
        return self._catalogue.models()

    def ready(self) -> bool:
        return self._catalogue.ready()

    def status(self) -> Mapping[str, object]:
        return self._catalogue.status()

    async def generate(self, request: ImageRequest, listener: Listener = unheard) -> Finished:
        entry = self._open(request, listener)
        try:
            return await entry.outcome
        finally:
            if entry.outcome.cancelled():
                self._tell_unfinished(entry)  # now: afterwards nobody listens
                self._events.put_nowait(ev.RequestCancelled(entry.record.graph.spec.id))

    def place(self, request_id: str) -> Place | None:
        standing = self._scheduler.standing(RequestId(request_id), self._now())
        return None if standing is None else Place(standing.ahead, standing.seconds_left)

    # --- for whoever runs it ------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Take events for ever. An exception here is a defect, and must end the process."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                self._take(await self._next_event())

    def report(self, report: Report) -> None:
        """From the stage pool."""
        self._events.put_nowait(report)

    async def order(self, judge: Callable[[], ev.Event | None]) -> None:
        """Carry out an operator's order: the event that ``judge`` makes in the very turn in which it takes effect.

        None for an order that is fulfilled already. Raises the ``ServiceError`` with which ``judge`` refuses.
        """
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events.put_nowait(_Order(judge, outcome))
        await outcome

    async def until_ready(self) -> None:
        """Until every role of some model was held for the first time."""
        await self._first_ready.wait()

    # --- events -------------------------------------------------------------------------------------------------------

    async def _next_event(self) -> ev.Event | Report | Picture | _Order:
        try:
            async with asyncio.timeout_at(self._scheduler.next_wakeup()):
                return await self._events.get()
        except TimeoutError:
            return ev.Tick()

    def _take(self, event: ev.Event | Report | Picture | _Order) -> None:
        match event:
            case Joined() | Heard() | Lost():
                told = self._about_server(event)
            case Picture():
                told = self._taken(event)
            case _Order():
                self._obey(event)
                told = None
            case ev.RequestCancelled(request=request):
                self._close(request)  # first: nothing may be fetched of outputs that the scheduler is about to release
                told = event
            case _:
                told = event
        if told is not None:
            self._tell(told)
        if self._catalogue.ready():
            self._first_ready.set()

    def _tell(self, event: ev.Event) -> None:
        actions = self._scheduler.handle(event, self._now())
        self._watch(event, actions)
        for action in actions:
            log.debug("%s", action)
            self._perform(action)

    def _obey(self, order: _Order) -> None:
        if order.outcome.done():
            return  # the operator did not wait for it
        try:
            event = order.judge()
        except ServiceError as refusal:
            order.outcome.set_exception(refusal)
            return
        if event is not None:
            self._tell(event)
        order.outcome.set_result(None)

    def _about_server(self, report: Report) -> ev.Event | None:
        match report:
            case Joined(server, hello):
                log.info("%s joined with %s of %s", server, ", ".join(hello.roles), hello.model.key)
                self._forget(server)
                self._servers[server] = hello
                self._catalogue.joined(server, hello.model, hello.roles)
                return translate.joined(server, hello, self._gateway)
            case Lost(server, why, clean):
                log.log(logging.INFO if clean else logging.WARNING, "%s is gone: %s", server, why)
                self._forget(server)
                return ev.ServerLost(server, why)
            case Heard(server, message):
                return self._heard(server, message)

    def _heard(self, server: ServerId, message: to_gateway.ToGateway) -> ev.Event | None:
        match message:
            case to_gateway.Started(epoch=epoch):
                self._attempts.started(server, epoch, self._now())
            case to_gateway.Paused(epoch=epoch):
                self._attempts.paused(server, epoch, self._now())
            case to_gateway.StageDone():
                self._done(server, message)
            case to_gateway.StageFailed():
                log.warning("%s: attempt %d: %s: %s", server, message.epoch.counter, message.code, message.message)
                self._attempts.failed(server, message.epoch, message.code)
            case to_gateway.StageCancelled():
                self._attempts.failed(server, message.epoch, "cancelled")
            case to_gateway.Progress(epoch=epoch, step=step, steps=steps):
                self._progressed(server, epoch, step, steps)
            case to_gateway.RolesReady():
                log.info("%s holds %s after %.2f s of loading", server, ", ".join(message.roles), message.load_seconds)
                self._catalogue.holds(server, message.roles)
            case to_gateway.RolesFailed():
                log.warning("%s keeps %s: %s", server, ", ".join(message.roles), message.message)
                self._catalogue.holds(server, message.roles)
        return translate.event(server, message)

    def _done(self, server: ServerId, message: to_gateway.StageDone) -> None:
        job = self._attempts.job(server, message.epoch)
        took = self._attempts.done(server, message, self._now())
        entry = self._owners.get(job.spec.id) if job is not None else None
        if took is not None and entry is not None:
            entry.listener(took)

    def _tell_unfinished(self, entry: _Open) -> None:
        for took in self._attempts.unfinished(entry.record, self._now()):
            entry.listener(took)

    def _progressed(self, server: ServerId, epoch: Epoch, step: int, steps: int) -> None:
        job = self._attempts.job(server, epoch)
        entry = self._owners.get(job.spec.id) if job is not None else None
        if job is not None and entry is not None:
            entry.listener(Progress(job.image or 0, step, steps))

    def _forget(self, server: ServerId) -> None:
        """What it held and did is void; it may come back, with nothing."""
        if self._servers.pop(server, None) is None:
            return
        self._catalogue.lost(server)
        self._attempts.server_lost(server)
        self._pictures.stop_from(server)

    def _taken(self, picture: Picture) -> ev.Event | None:
        if not self._pictures.take(picture):
            return None
        entry = self._owners[picture.job]
        job = entry.record.graph.jobs[picture.job]
        image = job.image or 0
        if job.preview is None:
            entry.pictures[image] = picture.data
            entry.listener(Ready(image, picture.data, entry.record.prompt))
        else:
            entry.listener(Partial(image, job.preview, picture.data))
        return ev.ResultTaken(picture.job)

    # --- actions ------------------------------------------------------------------------------------------------------

    def _perform(self, action: act.Action) -> None:
        match action:
            case act.Admit(request=request, predicted_seconds=seconds):
                self._requests[request].predicted_seconds = seconds
                self._requests[request].listener(Admitted(seconds))
            case act.Reject():
                self._end(action.request, failures.rejected(action))
            case act.Finish(request=request):
                self._end(request, None)
            case act.Fail():
                self._end(action.request, failures.failed(action))
            case act.FetchResult(job=job, source=source):
                self._pictures.start(self._tasks, job, source, self._instructions.reference(source))
            case act.TryPeer(fetcher=fetcher, holder=holder):
                self._try(fetcher, holder)
            case act.SetAside(server=server, roles=roles, reason=why):
                self._set_aside(server, roles, why)
            case act.SolvePlan(problem=problem):
                self._tasks.create_task(self._solve(problem), name="solve role plan")
            case _:
                self._instructions.carry_out(action, self._now())

    def _try(self, fetcher: ServerId, holder: ServerId) -> None:
        peer = self._instructions.peer(holder)
        if fetcher == GATEWAY:
            self._tasks.create_task(self._probe(peer), name=f"probe {holder}")
        else:
            self._outlets.send(fetcher, peer)

    async def _probe(self, peer: TryPeer) -> None:
        fault = await self._outlets.probe(peer)
        reached, unreached = ev.PeerReached(GATEWAY, peer.server), ev.PeerUnreached(GATEWAY, peer.server, fault)
        self._events.put_nowait(unreached if fault else reached)

    def _set_aside(self, server: ServerId, roles: Iterable[Role], why: str) -> None:
        ordered = tuple(role for role in Role if role in roles)
        if ordered:
            why = f"{why}. {CURE}"
            log.warning("%s gets no %s work: %s", server, ", ".join(ordered), why)
        else:
            log.info("%s gets work of all its roles again: others reach it, and it reaches others", server)
        self._catalogue.set_aside(server, ordered, why if ordered else "")
        self._outlets.send(server, to_stage.SetAside(roles=ordered, why=why if ordered else ""))

    async def _solve(self, problem: Problem) -> None:
        try:
            found = await asyncio.to_thread(plan, problem)
        except Infeasible as error:
            log.info("no role plan: %s", error)
            found = None
        self._events.put_nowait(ev.PlanReady(found))

    # --- requests -----------------------------------------------------------------------------------------------------

    def _open(self, request: ImageRequest, listener: Listener) -> _Open:
        if request.request_id in self._requests:
            raise ValueError(f"a request {request.request_id} is under way already")
        model = self._catalogue.resolve(request.model)
        if model is None:
            raise ModelNotFound(f"The model '{request.model}' does not exist.")
        uploads = self._hold(request.uploads)
        try:
            work = graph.build(request, model, self._now() + request.deadline_seconds, uploads)
        except ServiceError:
            self._drop(uploads.values())
            raise
        record = Record(work, request.traceparent, self._now())
        entry = _Open(record, asyncio.get_running_loop().create_future(), tuple(uploads.values()), listener)
        self._requests[work.spec.id] = entry
        self._owners |= dict.fromkeys(work.jobs, entry)
        self._events.put_nowait(ev.RequestArrived(work.spec))
        return entry

    def _end(self, request: RequestId, error: ServiceError | None) -> None:
        """Tell the caller, unless it is gone."""
        entry = self._close(request)
        if entry is None or entry.outcome.done():
            return
        if error is not None:
            self._tell_unfinished(entry)
            entry.outcome.set_exception(error)
            return
        pictures = tuple(entry.pictures[index] for index in sorted(entry.pictures))
        record = entry.record
        entry.outcome.set_result(Finished(pictures, record.stages(), entry.predicted_seconds, record.prompt))

    def _close(self, request: RequestId) -> _Open | None:
        entry = self._requests.pop(request, None)
        if entry is not None:
            for job in entry.record.graph.jobs:
                del self._owners[job]
                self._pictures.stop(job)
            self._drop(entry.uploads)
        return entry

    def _hold(self, pictures: Mapping[str, bytes]) -> dict[str, InputRef]:
        held: dict[str, InputRef] = {}
        try:
            for name, picture in pictures.items():
                held[name] = self._outlets.hold(picture)
        except RoomTaken as error:
            self._drop(held.values())
            raise NoCapacity(str(error), retry_after_seconds=UPLOADS_RETRY_SECONDS) from error
        return held

    def _drop(self, uploads: Iterable[InputRef]) -> None:
        for ref in uploads:
            self._outlets.drop(ref.handle)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
