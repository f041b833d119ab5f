"""The scheduler's shell: requests and stage servers' messages go in as events, actions come out as messages.

One task takes events in turn, so nothing else ever sees a half-made decision. It decides nothing itself. What waits is
taken all at once, and what stage servers said one after the other is decided on together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import NoReturn, Protocol

from gateway.service import failures, translate
from gateway.service.attempts import Attempts
from gateway.service.catalogue import Catalogue
from gateway.service.embeddings import Embeddings, Releases
from gateway.service.inbox import Inbox
from gateway.service.instructions import Instructions
from gateway.service.interfaces import (
    Finished,
    ImageRequest,
    Listener,
    ModelNotFound,
    Partial,
    Place,
    Ready,
    ServiceError,
    unheard,
)
from gateway.service.open_requests import Open, OpenRequests
from gateway.service.outlets import Outlets
from gateway.service.pictures import Picture, Pictures
from gateway.service.reports import Reports
from gateway.service.under_way import UnderWay
from gateway.stages.liveness import Heard, Joined, Lost, Report
from scheduler import actions as act
from scheduler import events as ev
from scheduler.reach import GATEWAY
from scheduler.roles.problem import Infeasible, Problem
from scheduler.roles.solver import plan
from scheduler.standing import Standing
from wire import to_gateway, to_stage
from wire.params import ModelInfo
from wire.record import record
from wire.to_stage import TryPeer
from wire.types import ModelKey, RequestId, Role, ServerId

MAX_EVENTS = 100_000
"""Waiting to be handled. More mean that the scheduler has come to a standstill, which ends the process."""

CURE = (
    "Check --data-bind and --data-advertise of the server at that address, the firewalls between the two machines, and "
    "CURVE keys; where no connection can lead to it, as behind NAT, give it a --relay. It is tried again now and then"
)

log = logging.getLogger(__name__)


class Decider(Protocol):
    """``scheduler.core.Scheduler``."""

    def handle_together(self, events: Sequence[ev.Event], now: float) -> list[list[act.Action]]: ...

    def next_wakeup(self) -> float | None: ...

    def standing(self, request_id: RequestId, now: float) -> Standing | None: ...

    def no_room(self, model: ModelKey, now: float) -> str: ...


Judge = Callable[[], ev.Event | tuple[ev.Event, ...] | None]


@record(frozen=True, slots=True)
class _Order:
    """Of an operator."""

    judge: Judge
    outcome: asyncio.Future[None]


_News = ev.Event | Report | Picture | _Order

Watch = Callable[[ev.Event, Sequence[act.Action]], None]
"""Told every event and what is done about it."""


class Dispatcher:
    """Implements ``gateway.service.interfaces.ImageService``. ``gateway`` is this process's incarnation."""

    def __init__(
        self,
        scheduler: Decider,
        gateway: str,
        outlets: Outlets,
        watch: Watch = lambda _event, _actions: None,
        embeddings: Embeddings | None = None,
        awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        """``embeddings``: which encodings are kept; none if not given. ``awaited``: whether a request that finds no
        server would have some started."""
        self._awaited = awaited
        self._scheduler = scheduler
        self._gateway = gateway
        self._outlets = outlets
        self._watch = watch
        self._inbox: Inbox[_News] = Inbox(MAX_EVENTS)
        self._catalogue = Catalogue()
        self._servers: dict[ServerId, to_gateway.Hello] = {}
        self._embeddings = embeddings or Embeddings(0)
        self._under_way = UnderWay()
        self._requests = OpenRequests(outlets.hold, outlets.drop, self._embeddings)
        self._attempts = Attempts()
        self._instructions = Instructions(
            outlets.send, self._servers, lambda job: self._requests.owner(job).record, self._attempts, self._embeddings
        )
        self._reports = Reports(
            self._attempts, self._catalogue, self._requests, self._embeddings, self._under_way, self._release
        )
        self._pictures = Pictures(outlets.fetch, self._inbox.put)
        self._first_ready = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._armed_for = inf

    # --- ImageService -------------------------------------------------------------------------------------------------

    def models(self) -> tuple[ModelInfo, ...]:
        return self._catalogue.models()

    def ready(self) -> bool:
        return self._catalogue.ready() or self._awaited()

    def status(self) -> Mapping[str, object]:
        status = self._catalogue.status()
        for told in status.values():
            if told["missing"] and (why := self._scheduler.no_room(ModelKey(str(told["key"])), self._now())):
                told["no_room"] = why
        return status

    async def generate(self, request: ImageRequest, listener: Listener = unheard) -> Finished:
        entry = self._open(request, listener)
        await self._arrive(entry)
        try:
            return await entry.outcome
        finally:
            if entry.outcome.cancelled():
                self._tell_unfinished(entry)  # now: afterwards nobody listens
                self._inbox.put(ev.RequestCancelled(entry.record.graph.spec.id))

    def place(self, request_id: str) -> Place | None:
        standing = self._scheduler.standing(RequestId(request_id), self._now())
        return None if standing is None else Place(standing.ahead, standing.seconds_left)

    # --- for whoever runs it ------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Take events for ever. An exception here is a defect, and must end the process."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._arm()
                while True:
                    self._take(await self._inbox.take())
                    self._arm()
        finally:
            if self._alarm is not None:
                self._alarm.cancel()

    def report(self, report: Report) -> None:
        """From the stage pool."""
        self._inbox.put(report)

    async def order(self, judge: Judge) -> None:
        """Carry out an operator's order: the events that ``judge`` makes in the very turn in which they take effect.

        None for an order that is fulfilled already. Raises the ``ServiceError`` with which ``judge`` refuses.
        """
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.put(_Order(judge, outcome))
        await outcome

    async def until_ready(self) -> None:
        """Until every role of some model was held for the first time."""
        await self._first_ready.wait()

    def turn_away(self, model: ModelKey, error: ServiceError) -> None:
        """End all requests for ``model`` with ``error``: nobody will serve it here."""
        for entry in self._requests.of_model(model):
            if not entry.outcome.done():
                self._inbox.put(ev.RequestCancelled(entry.record.graph.spec.id))
                entry.outcome.set_exception(error)

    # --- events -------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """See to it that the scheduler is woken in time. One that wants to be woken later is so by ``_ring``."""
        due = self._scheduler.next_wakeup()
        if due is not None and due < self._armed_for:
            if self._alarm is not None:
                self._alarm.cancel()
            self._armed_for = due
            self._alarm = asyncio.get_running_loop().call_at(due, self._ring)

    def _ring(self) -> None:
        self._alarm, self._armed_for = None, inf
        due = self._scheduler.next_wakeup()
        if due is not None and due <= self._now():
            self._inbox.put(ev.Tick())
        else:
            self._arm()

    def _take(self, news: Sequence[_News]) -> None:
        now, heard = self._now(), list[ev.Event]()
        for each in news:
            match each:
                case Heard(server, message):
                    told = self._reports.heard(server, message, now)
                case Picture():
                    told = self._taken(each)
                case _:  # may undo what is about to be decided, such as a server's loss: first what came before it
                    self._tell(heard, now)
                    heard, told = [], None
                    self._take_alone(each, now)
            if told is not None:
                heard.append(told)
        self._tell(heard, now)
        if not self._first_ready.is_set() and self._catalogue.ready():
            self._first_ready.set()

    def _take_alone(self, event: ev.Event | Joined | Lost | _Order, now: float) -> None:
        match event:
            case Joined() | Lost():
                self._tell((self._about_server(event),), now)
            case _Order():
                self._obey(event, now)
            case ev.RequestCancelled(request=request):
                self._close(request)  # first: nothing may be fetched of outputs that the scheduler is about to release
                self._tell((event,), now)
            case _:
                self._tell((event,), now)

    def _tell(self, events: Sequence[ev.Event], now: float) -> None:
        if not events:
            return
        for event, actions in zip(events, self._scheduler.handle_together(events, now), strict=True):
            self._watch(event, actions)
            for action in actions:
                log.debug("%s", action)
                self._perform(action, now)

    def _obey(self, order: _Order, now: float) -> None:
        if order.outcome.done():
            return  # the operator did not wait for it
        try:
            told = order.judge()
        except ServiceError as refusal:
            order.outcome.set_exception(refusal)
            return
        if told is not None:
            self._tell(told if isinstance(told, tuple) else (told,), now)
        order.outcome.set_result(None)

    def _about_server(self, report: Joined | Lost) -> ev.Event:
        match report:
            case Joined(server, hello):
                log.info("%s joined with %s of %s", server, ", ".join(hello.roles), hello.model.key)
                self._forget(server)
                self._servers[server] = hello
                self._catalogue.joined(server, hello.model, hello.roles)
                for why in self._catalogue.unlike(hello.model):
                    log.warning("%s is not mixed with others of %s: other %s", server, hello.model.name, why)
                return translate.joined(server, hello, self._gateway)
            case Lost(server, why, clean):
                log.log(logging.INFO if clean else logging.WARNING, "%s is gone: %s", server, why)
                self._forget(server)
                return ev.ServerLost(server, why)

    def _release(self, releases: Releases) -> None:
        for server, handles in releases:
            if server in self._servers:
                self._outlets.send(server, to_stage.Release(handles=handles))

    def _tell_unfinished(self, entry: Open) -> None:
        for took in self._attempts.unfinished(entry.record, self._now()):
            entry.listener(took)

    def _forget(self, server: ServerId) -> None:
        """What it held and did is void; it may come back, with nothing."""
        if self._servers.pop(server, None) is None:
            return
        self._catalogue.lost(server)
        self._embeddings.forget(server)
        self._attempts.server_lost(server, self._now())
        self._pictures.stop_from(server)

    def _taken(self, picture: Picture) -> ev.Event | None:
        if not self._pictures.take(picture):
            return None
        entry = self._requests.owner(picture.job)
        job = entry.record.graph.jobs[picture.job]
        image = job.image or 0
        if job.preview is None:
            entry.pictures[image] = picture.data
            entry.listener(Ready(image, picture.data, entry.record.prompt))
        else:
            entry.listener(Partial(image, job.preview, picture.data))
        return ev.ResultTaken(picture.job)

    # --- actions ------------------------------------------------------------------------------------------------------

    def _perform(self, action: act.Action, now: float) -> None:
        match action:
            case act.Run() | act.Release():  # most of them
                self._instructions.carry_out(action, now)
            case act.Admit(request=request, predicted_seconds=seconds):
                self._requests.admitted(request, seconds)
            case act.Reject():
                self._end(action.request, failures.rejected(action))
            case act.Finish(request=request):
                self._end(request, None)
            case act.Fail():
                self._end(action.request, failures.failed(action))
            case act.FetchResult(job=job, source=source):
                ref, record = self._instructions.reference(source), self._requests.owner(job).record
                self._pictures.start(self._tasks, job, source, ref, record.traceparent)
            case act.TryPeer(fetcher=fetcher, holder=holder):
                self._try(fetcher, holder)
            case act.SetAside(server=server, roles=roles, reason=why):
                self._set_aside(server, roles, why)
            case act.SolvePlan(problem=problem):
                self._tasks.create_task(self._solve(problem), name="solve role plan")
            case _:
                self._instructions.carry_out(action, now)

    def _try(self, fetcher: ServerId, holder: ServerId) -> None:
        peer = self._instructions.peer(holder)
        if fetcher == GATEWAY:
            self._tasks.create_task(self._probe(peer), name=f"probe {holder}")
        else:
            self._outlets.send(fetcher, peer)

    async def _probe(self, peer: TryPeer) -> None:
        fault = await self._outlets.probe(peer)
        reached, unreached = ev.PeerReached(GATEWAY, peer.server), ev.PeerUnreached(GATEWAY, peer.server, fault)
        self._inbox.put(unreached if fault else reached)

    def _set_aside(self, server: ServerId, roles: Iterable[Role], why: str) -> None:
        ordered = tuple(role for role in Role if role in roles)
        if ordered:
            why = f"{why}. {CURE}"
            log.warning("%s gets no %s work: %s", server, ", ".join(ordered), why)
        else:
            log.info("%s gets work of all its roles again: others reach it, and it reaches others", server)
        if Role.ENCODER in ordered:  # of those that read nothing from others, only where others cannot read from it
            self._release(self._embeddings.unread(server))
        self._catalogue.set_aside(server, ordered, why if ordered else "")
        self._outlets.send(server, to_stage.SetAside(roles=ordered, why=why if ordered else ""))

    async def _solve(self, problem: Problem) -> None:
        try:
            found = await asyncio.to_thread(plan, problem)
        except Infeasible as error:
            log.info("no role plan: %s", error)
            found = None
        except (OSError, ImportError) as error:  # the solver is imported when it is first needed, which takes files
            log.warning("no role plan, as the solver cannot be loaded: %s; it is tried again", error)
            found = None
        self._inbox.put(ev.PlanReady(found))

    # --- requests -----------------------------------------------------------------------------------------------------

    def _open(self, request: ImageRequest, listener: Listener) -> Open:
        model = self._catalogue.resolve(request.model)
        if model is None:
            raise ModelNotFound(f"The model '{request.model}' does not exist.")
        return self._requests.open(request, model, listener, self._now())

    async def _arrive(self, entry: Open) -> None:
        """Tell the scheduler, once nobody else is making what the request's encoder jobs would make."""
        request = entry.record.graph.spec.id
        try:
            await self._under_way.wait(entry.encodings.values(), exact=entry.exact)
        except asyncio.CancelledError:
            self._close(request)
            raise
        self._under_way.begin(self._requests.supply(entry).values(), request, exact=entry.exact)
        self._inbox.put(ev.RequestArrived(entry.record.graph.spec))

    def _end(self, request: RequestId, error: ServiceError | None) -> None:
        """Tell the caller, unless it is gone."""
        entry = self._close(request)
        if entry is None or entry.outcome.done():
            return
        if error is not None:
            self._tell_unfinished(entry)
            entry.outcome.set_exception(error)
            return
        entry.outcome.set_result(entry.finished())

    def _close(self, request: RequestId) -> Open | None:
        entry = self._requests.close(request)
        if entry is not None:
            for job in entry.record.graph.jobs:
                self._pictures.stop(job)
            self._release(self._embeddings.over(request))
            self._under_way.over(entry.encodings.values(), request)
        return entry

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
