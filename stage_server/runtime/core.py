"""Every decision of a stage server in one place: events in, effects out. Pure: no socket, thread or clock.

What it must not know: how a job computes, where bytes lie. The shell around it (``server``) does what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from stage_server.runtime.credits import MAX_ATTEMPTS, PREFETCHED, Credits
from stage_server.runtime.events import (
    Computed,
    Connected,
    Denied,
    DeviceTaken,
    Disconnected,
    Effect,
    Event,
    Exit,
    InputsFetched,
    InputsHere,
    JobKey,
    Published,
    ReadAheadOver,
    Received,
    RolesBegun,
    RolesBroke,
    RolesLoaded,
    RolesRested,
    RoomFreed,
    Send,
    Terminate,
    Tick,
    Tried,
    Try,
    Unreached,
    Warn,
)
from stage_server.runtime.jobs import Jobs, State
from stage_server.runtime.leaving import Departure
from stage_server.runtime.link import Link, LinkTimes
from stage_server.runtime.post import Post
from stage_server.runtime.roles import RoleSet, in_order
from stage_server.runtime.route import Route
from stage_server.runtime.stalls import Stalls
from stage_server.runtime.watch import Stuck, Watch
from wire.errors import Code
from wire.to_gateway import (
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    Leaving,
    RolesFailed,
    StageFailed,
)
from wire.to_stage import (
    AssignRoles,
    Cancel,
    CellState,
    Fine,
    HandOver,
    HeartbeatAck,
    MoveTo,
    Preload,
    Refused,
    Release,
    Run,
    SayHello,
    SetAside,
    Shutdown,
    ToStage,
    TryPeer,
    Welcome,
)
from wire.types import Role, ServerId, server_name

STUCK_ADVICE = (
    "The device or its driver hangs, so this process ends, for its supervisor to start it anew; its work goes to "
    "others. If that happens again, look into the system's log for errors of the device; "
    "if such jobs do take as long here, raise --stuck-seconds"
)


class Meters(Protocol):
    """What the core has to ask about the world; must answer at once."""

    def room(self, role: Role, outputs: int) -> bool:
        """So many more outputs of the role fit into the store."""

    def heartbeat(self, sequence: int) -> Heartbeat: ...


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Seconds."""

    link: LinkTimes = field(default_factory=LinkTimes)
    orphan: float = 60.0
    """Without any gateway, after which work and outputs are given up."""
    drain: float = 30.0
    """From SIGTERM until the server leaves, whatever is left."""
    stuck: float = 0.0
    """At least, without a sign of life of what has the device, until the server ends itself; 0: never."""


class StageCore:
    """``hello`` says what this server is; what it holds and runs is filled in when a ``Hello`` goes out."""

    def __init__(
        self, hello: Hello, gateways: Iterable[str], meters: Meters, times: CoreTimes, prefetched: int = PREFETCHED
    ) -> None:
        """``gateways``: their endpoints, of which it belongs to one at a time."""
        self._base = hello
        self._meters = meters
        self._times = times
        self._link = Link(Route(_process(hello), gateways), times.link, self._introduce, self._heartbeat)
        self._jobs = Jobs()
        self._credits = Credits({role: info.together for role, info in hello.capable.items()}, prefetched)
        self._roles = RoleSet(
            frozenset(hello.roles), frozenset(hello.capable), hello.pinned, may_be_empty=bool(hello.device)
        )
        self._post = Post(self._link)
        self._departure = Departure(times.drain)
        self._watch = Watch(times.stuck, sum(info.load_seconds for info in hello.capable.values()))
        self._stalls = Stalls()
        self._is_over = False

    def start(self, now: float) -> list[Effect]:
        return self._link.start(now)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do about ``event``, in order. ``now`` never runs backwards."""
        return [*self.take(event, now), *self.settle(now)]

    def take(self, event: Event, now: float) -> list[Effect]:
        """The same without what ``settle`` says, which is to be asked once all is done that events at hand call for."""
        # A process that was frozen has heard nothing meanwhile, and its jobs have not gone on.
        stood_still = self._stalls.seconds(self.next_wakeup, now)
        if stood_still:
            self._watch.excuse(stood_still)
        # A change of roles begins as soon as the event has ended the last job in its way.
        effects = self._post.passed([*self._on(event, now), *self._advance_roles()])
        self._watch.see(event, effects, now)
        return effects

    def settle(self, now: float) -> list[Effect]:
        """What the rules want that hold after events, whichever came."""
        if self._is_over:
            return []
        # A Hello that corrects the roles restarts the credits, so grants come after it; to leave is decided last.
        return [*self._correct_roles(now), *self._grant(), *self._leave(now)]

    def next_wakeup(self) -> float:
        due = self._link.next_wakeup()
        others = (self._jobs.next_deadline(), self._watch.next_due(), self._departure.by, self._orphaned_at())
        return min([due, *[wakeup for wakeup in others if wakeup is not None]])

    # --- events ---

    def _on(self, event: Event, now: float) -> list[Effect]:
        match event:  # what comes most often comes first
            case InputsFetched() | InputsHere() | DeviceTaken() | Computed() | Published():
                return self._jobs.on(event)
            case Received(message):
                self._link.heard(now)
                return self._hear(message, now)
            case RoomFreed():
                return []
            case Connected() | Disconnected() | Unreached() | Denied():
                return self._about_link(event, now)
            case Tried(result):
                return [Send(result)]
            case Terminate():
                return self._departure.told_to_end(now)
            case Tick():
                return self._tick(now)
            case RolesBegun() | RolesRested():
                return []  # for the watch alone
            case RolesLoaded() | RolesBroke() | ReadAheadOver():
                return self._about_roles(event)
            case _:
                return self._jobs.on(event)

    def _about_roles(self, event: RolesLoaded | RolesBroke | ReadAheadOver) -> list[Effect]:
        match event:
            case RolesLoaded():
                self._base = msgspec.structs.replace(self._base, forms=dict(event.forms))
                return self._roles.loaded(event)
            case RolesBroke(message, roles):
                return self._roles.broke(message, roles)
            case ReadAheadOver(fault):
                return [*([Warn(f"reading ahead: {fault}")] if fault else []), *self._roles.read_ahead()]

    def _about_link(self, event: Connected | Disconnected | Unreached | Denied, now: float) -> list[Effect]:
        match event:
            case Connected():
                return self._link.connected(now)
            case Disconnected():
                return self._link.disconnected(now)
            case Unreached():
                return self._link.unreached(now)
            case Denied():
                return self._link.denied(now)

    def _hear(self, message: ToStage, now: float) -> list[Effect]:
        match message:
            case Welcome():
                return self._welcome(message, now)
            case Refused():
                return self._link.refused(message, now)
            case SayHello():
                return self._link.say_hello(now)
            case Run():
                return self._receive(message, now)
            case Cancel() | HandOver() | Release():
                return self._about_jobs(message)
            case AssignRoles() | Preload():
                return self._order_roles(message)
            case HeartbeatAck() | Fine() | CellState() | TryPeer() | SetAside():
                return list(_about_others(message))
            case MoveTo(endpoint=endpoint):
                return self._departure.move(endpoint, now)
            case Shutdown():
                return self._departure.shut_down(now)

    def _about_jobs(self, message: Cancel | HandOver | Release) -> list[Effect]:
        match message:
            case Cancel(epochs=epochs):
                return self._jobs.cancel(epochs)
            case HandOver(epochs=epochs):
                return self._jobs.hand_over(epochs)
            case Release(handles=handles):
                return self._jobs.release(handles)

    def _welcome(self, message: Welcome, now: float) -> list[Effect]:
        effects: list[Effect] = []
        # Before last words are sent below: those meant for the former gateway go with its work.
        if self._link.gateway not in ("", message.gateway):
            effects += [Warn("another gateway answers: what the former one asked for is dropped"), *self._abandon()]
            self._departure.arrived()
        effects += self._link.welcome(message, now)
        return [*effects, *self._post.caught_up(), *self._departure.announced(now)]

    def _receive(self, run: Run, now: float) -> list[Effect]:
        """Of several members, which gateways before protocol 1.2 may send, each is a job like any other."""
        self._credits.take(run.role)
        jobs = (msgspec.structs.replace(run, members=(member,)) for member in run.members)
        return [effect for job in jobs for effect in self._run(job, now)]

    def _run(self, run: Run, now: float) -> list[Effect]:
        if self._departure.is_under_way:
            refusal = "the server is leaving"
        elif run.role not in self._roles.accepting():
            refusal = self._roles.refusal(run.role)
        elif self._jobs.under_way().get(run.role, 0) >= MAX_ATTEMPTS:
            refusal = f"more than {MAX_ATTEMPTS} {run.role} attempts at once"
        else:
            return self._jobs.begin(run, now)
        epoch = run.members[0].epoch
        return [Send(StageFailed(epoch=epoch, code=Code.DRAINING, message=refusal, retryable=True))]

    def _order_roles(self, message: AssignRoles | Preload) -> list[Effect]:
        is_leaving = self._departure.is_under_way
        match message:
            case Preload(roles=roles):
                return [] if is_leaving else self._roles.preload(frozenset(roles))
            case AssignRoles(epoch=epoch) if is_leaving:
                roles = in_order(self._roles.held)
                return [Send(RolesFailed(epoch=epoch, roles=roles, message="the server is leaving"))]
            case AssignRoles():
                return self._roles.assign(message)

    def _depart(self, why: str, now: float) -> list[Effect]:
        farewell: list[Effect] = [Send(Goodbye())] if self._link.welcomed else []
        if self._departure.is_for_good:
            return [*farewell, Exit(0, why)]
        return [*farewell, *self._abandon(), *self._link.part(self._departure.end(), now)]

    def _tick(self, now: float) -> list[Effect]:
        stuck = self._watch.stuck(now)
        if stuck is not None:
            return self._stand_still(stuck)
        effects = [*self._jobs.expire(now), *self._link.tick(now)]
        orphaned_at = self._orphaned_at()
        if orphaned_at is not None and now >= orphaned_at:
            effects += [Warn(f"no gateway for {self._times.orphan:g} s: its work is given up"), *self._abandon()]
        if self._departure.is_overdue(now):
            left = f"{len(self._jobs.epochs())} attempts and {len(self._jobs.handles())} outputs"
            effects += self._depart(f"leaving after {self._times.drain:g} s with {left} left", now)
        return effects

    def _stand_still(self, stuck: Stuck) -> list[Effect]:
        """First of all ``Leaving``, or the job would come back to this server as soon as it is given up."""
        self._is_over = True
        if stuck.job is not None:
            what = self._jobs.name(stuck.job)
            fault = f"{what} has shown no sign of life for {stuck.silent:.0f} s"
            last_words = self._jobs.give_up(stuck.job, fault)
        else:
            fault = f"a change of roles has not left the device for {stuck.silent:.0f} s"
            last_words = self._roles.broke(fault, self._roles.held)
        return [Send(Leaving()), *last_words, Send(Goodbye()), Exit(1, f"{fault}. {STUCK_ADVICE}", hands_over=True)]

    # --- rules that hold after every event ---

    def _advance_roles(self) -> list[Effect]:
        return self._roles.advance(self._jobs.under_way()) if self._roles.draining is not None else []

    def _grant(self) -> list[Effect]:
        if not self._link.welcomed:
            return []
        active = self._jobs.under_way()
        granted = [Send(Grant(limits=self._credits.limits()))] if self._raise_limits(active) else []
        accepting = () if self._departure.is_under_way else in_order(self._roles.accepting())
        return [*granted, *map(Warn, self._credits.complaints(accepting, active))]

    def _correct_roles(self, now: float) -> list[Effect]:
        """A gateway that came while roles changed, for another one or unheard, must not believe the former ones."""
        if self._link.welcomed and self._post.told_roles != in_order(self._roles.held):
            return self._link.greet_again(now)
        return []

    def _leave(self, now: float) -> list[Effect]:
        if not self._departure.is_under_way or self._jobs.states() or self._jobs.handles() or not self._post.is_empty:
            return []
        return self._depart("all work is done and handed over", now)

    # --- inside ---

    def _introduce(self) -> Hello:
        self._credits.restart()
        self._raise_limits(self._jobs.under_way())
        self._post.told_roles = in_order(self._roles.held)
        running = self._jobs.epochs() + self._post.finished()
        holds = self._jobs.handles()
        return msgspec.structs.replace(
            self._base,
            roles=self._post.told_roles,
            gateway=self._link.gateway if running or holds else "",
            running=running,
            holds=holds,
            limits=self._credits.limits(),
        )

    def _heartbeat(self, sequence: int) -> Heartbeat:
        return msgspec.structs.replace(self._meters.heartbeat(sequence), blocked=in_order(self._credits.blocked))

    def _raise_limits(self, active: Mapping[Role, int]) -> bool:
        if self._departure.is_under_way:
            return False
        fetching = self._jobs.under_way(State.FETCHING)
        return self._credits.raise_limits(in_order(self._roles.accepting()), active, fetching, self._meters.room)

    def _abandon(self) -> list[Effect]:
        self._post.drop()
        self._roles.abandon()
        return self._jobs.abandon()

    def _orphaned_at(self) -> float | None:
        if self._link.welcomed or not (self._jobs.epochs() or self._jobs.handles() or not self._post.is_empty):
            return None
        return self._link.lost_since + self._times.orphan

    # --- for people and tests ---

    def jobs(self) -> dict[JobKey, State]:
        """Jobs whose threads have not ended."""
        return self._jobs.states()


def _process(hello: Hello) -> str:
    """Servers of one process have one order of gateways, so that they stay together."""
    return server_name(ServerId(hello.device)) if hello.device else hello.name


def _about_others(message: HeartbeatAck | Fine | CellState | TryPeer | SetAside) -> Iterator[Effect]:
    match message:
        case TryPeer():
            yield Try(message)
        case SetAside():
            yield Warn(_told(message))
        case HeartbeatAck() | Fine() | CellState():
            pass  # Fine answers a question that was asked before this connection, CellState one of other gateways


def _told(message: SetAside) -> str:
    if not message.roles:
        return "others reach this server's data socket, and it theirs: it gets work of all its roles again"
    return f"this server gets no {', '.join(message.roles)} work: {message.why}"
