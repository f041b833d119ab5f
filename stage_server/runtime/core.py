"""Every decision of a stage server in one place: events in, effects out. Pure: no socket, thread or clock.

What it must not know: how a job computes, where bytes lie. The shell around it (``server``) does what it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from stage_server.runtime.credits import MAX_MEMBERS, Credits
from stage_server.runtime.events import (
    Connected,
    Denied,
    Disconnected,
    Effect,
    Event,
    Exit,
    JobKey,
    Received,
    RolesBroke,
    RolesLoaded,
    RoomFreed,
    Send,
    Terminate,
    Tick,
    Tried,
    Try,
    Warn,
)
from stage_server.runtime.jobs import Jobs, State
from stage_server.runtime.link import Link, LinkTimes
from stage_server.runtime.roles import RoleSet, in_order
from wire.errors import Code
from wire.to_gateway import (
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    Leaving,
    RolesFailed,
    RolesReady,
    StageCancelled,
    StageDone,
    StageFailed,
    ToGateway,
)
from wire.to_stage import (
    AssignRoles,
    Cancel,
    Fine,
    HeartbeatAck,
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
from wire.types import Epoch, Role

LastWord = StageDone | StageFailed | StageCancelled | RolesReady | RolesFailed


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


class StageCore:
    """``hello`` says what this server is; what it holds and runs is filled in when a ``Hello`` goes out."""

    def __init__(self, hello: Hello, endpoint: str, meters: Meters, times: CoreTimes) -> None:
        self._base = hello
        self._meters = meters
        self._times = times
        self._link = Link(endpoint, times.link, self._introduce, meters.heartbeat)
        self._jobs = Jobs()
        self._credits = Credits()
        self._roles = RoleSet(frozenset(hello.roles), frozenset(hello.capable), hello.pinned)
        self._unsent: dict[Epoch, LastWord] = {}
        """Last words that no gateway was there to hear."""
        self._said: tuple[Role, ...] = ()
        """Roles that the gateway believes to be here."""
        self._leave_by: float | None = None
        self._blocked: frozenset[Role] = frozenset()
        """Roles without work because the store is full; the operator knows."""

    def start(self, now: float) -> list[Effect]:
        return self._link.start(now)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do about ``event``, in order. ``now`` never runs backwards."""
        # In this order: a change of roles begins as soon as the event has ended the last job in its way; a Hello that
        # corrects the roles restarts the credits, so grants come after it; to leave is decided when all that is known.
        effects = self._posted([*self._on(event, now), *self._roles.advance(self._jobs.members())])
        return [*effects, *self._correct_roles(now), *self._grant(), *self._leave()]

    def next_wakeup(self) -> float:
        wakeups = (self._link.next_wakeup(), self._jobs.next_deadline(), self._leave_by, self._orphaned_at())
        return min(wakeup for wakeup in wakeups if wakeup is not None)

    # --- events ---

    def _on(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Connected() | Disconnected() | Denied():
                return self._about_link(event, now)
            case RoomFreed():
                return []
            case Tried(result):
                return [Send(result)]
            case Received(message):
                self._link.heard(now)
                return self._hear(message, now)
            case Terminate():
                return self._terminate(now)
            case Tick():
                return self._tick(now)
            case RolesLoaded(roles, seconds):
                return self._roles.loaded(roles, seconds)
            case RolesBroke(message):
                return self._roles.broke(message)
            case _:
                return self._jobs.on(event)

    def _about_link(self, event: Connected | Disconnected | Denied, now: float) -> list[Effect]:
        match event:
            case Connected():
                return self._link.connected(now)
            case Disconnected():
                return self._link.disconnected(now)
            case Denied():
                return self._link.denied()

    def _hear(self, message: ToStage, now: float) -> list[Effect]:
        match message:
            case Welcome():
                return self._welcome(message, now)
            case Refused():
                return self._link.refused(message)
            case SayHello():
                return self._link.say_hello(now)
            case Run():
                return self._run(message, now)
            case Cancel(epochs=epochs):
                return self._jobs.cancel(epochs)
            case Release(handles=handles):
                return self._jobs.release(handles)
            case AssignRoles():
                return self._assign(message)
            case HeartbeatAck() | Fine() | TryPeer() | SetAside():
                return list(_about_others(message))
            case Shutdown():
                return self._terminate(now) if self._leave_by is None else []

    def _welcome(self, message: Welcome, now: float) -> list[Effect]:
        effects: list[Effect] = []
        # Before last words are sent below: those meant for the former gateway go with its work.
        if self._link.gateway not in ("", message.gateway):
            effects += [Warn("another gateway answers: what the former one asked for is dropped"), *self._abandon()]
        effects += self._link.welcome(message, now)
        effects += [Send(word) for word in self._unsent.values()]
        self._unsent.clear()
        if self._leave_by is not None:
            effects.append(Send(Leaving()))
        return effects

    def _run(self, run: Run, now: float) -> list[Effect]:
        self._credits.take(run.role)
        if self._leave_by is not None:
            refusal = "the server is leaving"
        elif run.role not in self._roles.accepting():
            refusal = self._roles.refusal(run.role)
        elif self._jobs.members()[run.role] + len(run.members) > MAX_MEMBERS:
            refusal = f"more than {MAX_MEMBERS} {run.role} attempts at once"
        else:
            return self._jobs.begin(run, now)
        return [
            Send(StageFailed(epoch=member.epoch, code=Code.DRAINING, message=refusal, retryable=True))
            for member in run.members
        ]

    def _assign(self, message: AssignRoles) -> list[Effect]:
        if self._leave_by is None:
            return self._roles.assign(message)
        roles = in_order(self._roles.held)
        return [Send(RolesFailed(epoch=message.epoch, roles=roles, message="the server is leaving"))]

    def _terminate(self, now: float) -> list[Effect]:
        if self._leave_by is not None:
            return [Exit(1, "told to stop a second time: leaving at once")]
        self._leave_by = now + self._times.drain
        return [Send(Leaving())]

    def _tick(self, now: float) -> list[Effect]:
        effects = [*self._jobs.expire(now), *self._link.tick(now)]
        orphaned_at = self._orphaned_at()
        if orphaned_at is not None and now >= orphaned_at:
            effects += [Warn(f"no gateway for {self._times.orphan:g} s: its work is given up"), *self._abandon()]
        if self._leave_by is not None and now >= self._leave_by:
            left = f"{len(self._jobs.epochs())} attempts and {len(self._jobs.handles())} outputs"
            effects += [Send(Goodbye()), Exit(0, f"leaving after {self._times.drain:g} s with {left} left")]
        return effects

    # --- rules that hold after every event ---

    def _grant(self) -> list[Effect]:
        if not self._link.welcomed:
            return []
        granted = [Send(Grant(limits=self._credits.limits()))] if self._raise_limits() else []
        return [*granted, *self._complain_of_room()]

    def _complain_of_room(self) -> list[Effect]:
        """Work that does not come for want of room is seen nowhere else."""
        accepting = () if self._leave_by is not None else in_order(self._roles.accepting())
        blocked = frozenset(self._credits.spent(accepting, self._jobs.batches()))
        new, self._blocked = blocked - self._blocked, blocked
        return [
            Warn(f"the output store has no room for another output of {role}: no {role} work until some are released")
            for role in in_order(new)
        ]

    def _posted(self, effects: list[Effect]) -> list[Effect]:
        """Messages go only to a gateway that knows us. Last words wait for it, all others would be stale by then."""
        return [effect for effect in effects if not isinstance(effect, Send) or self._deliverable(effect.message)]

    def _deliverable(self, message: ToGateway) -> bool:
        if isinstance(message, LastWord) and message.epoch.gateway != self._link.gateway:
            return isinstance(message, StageCancelled) and self._link.welcomed
        if isinstance(message, LastWord) and not self._link.welcomed:
            self._unsent[message.epoch] = message
        if isinstance(message, RolesReady) and self._link.welcomed:
            self._said = message.roles
        return self._link.welcomed or isinstance(message, Hello)

    def _correct_roles(self, now: float) -> list[Effect]:
        """A gateway that came while roles changed, for another one or unheard, must not believe the former ones."""
        if self._link.welcomed and self._said != in_order(self._roles.held):
            return self._link.greet_again(now)
        return []

    def _leave(self) -> list[Effect]:
        if self._leave_by is None or self._jobs.states() or self._jobs.handles() or self._unsent:
            return []
        return [*([Send(Goodbye())] if self._link.welcomed else []), Exit(0, "all work is done and handed over")]

    # --- inside ---

    def _introduce(self) -> Hello:
        self._credits.restart()
        self._raise_limits()
        self._said = in_order(self._roles.held)
        finished = tuple(
            epoch for epoch, word in self._unsent.items() if not isinstance(word, RolesReady | RolesFailed)
        )
        running = self._jobs.epochs() + finished
        holds = self._jobs.handles()
        return msgspec.structs.replace(
            self._base,
            roles=self._said,
            gateway=self._link.gateway if running or holds else "",
            running=running,
            holds=holds,
            limits=self._credits.limits(),
        )

    def _raise_limits(self) -> bool:
        if self._leave_by is not None:
            return False
        accepting = self._roles.accepting()
        fetching = self._jobs.members(State.FETCHING)
        return self._credits.raise_limits(in_order(accepting), self._jobs.batches(), fetching, self._meters.room)

    def _abandon(self) -> list[Effect]:
        self._unsent.clear()
        self._roles.abandon()
        return self._jobs.abandon()

    def _orphaned_at(self) -> float | None:
        if self._link.welcomed or not (self._jobs.epochs() or self._jobs.handles() or self._unsent):
            return None
        return self._link.lost_since + self._times.orphan

    # --- for people and tests ---

    def jobs(self) -> dict[JobKey, State]:
        """Jobs whose threads have not ended."""
        return self._jobs.states()


def _about_others(message: HeartbeatAck | Fine | TryPeer | SetAside) -> Iterator[Effect]:
    match message:
        case TryPeer():
            yield Try(message)
        case SetAside():
            yield Warn(_told(message))
        case HeartbeatAck() | Fine():
            pass  # Fine answers a question that was asked before this connection


def _told(message: SetAside) -> str:
    if not message.roles:
        return "others reach this server's data socket, and it theirs: it gets work of all its roles again"
    return f"this server gets no {', '.join(message.roles)} work: {message.why}"
