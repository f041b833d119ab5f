"""A gateway of the simulation: the product's ``Roster``, ``OwnCell`` and rules, and what they have done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from gateway.cells.keeper import ASK_SECONDS, DRAINING_SECONDS, SILENCE_SECONDS
from gateway.cells.own import RETURNED_SECONDS, Departures, OwnCell
from gateway.cells.rules import Move, Steadiness
from gateway.service import translate
from gateway.stages.liveness import Effect, Joined, Lost, PoolRules, Roster, Send
from scheduler.state import Server
from scheduler.view import View
from wire.to_gateway import Hello, ToGateway
from wire.to_stage import CellState, MoveTo, ToStage
from wire.types import REQUIRED, ServerId, server_name

if TYPE_CHECKING:
    from benchmarks.cells_at_scale.world import World

HEARTBEAT_SECONDS, LIVENESS_SECONDS = 2.0, 10.0
"""The gateway's defaults."""


@dataclass(slots=True)
class _Known:
    """What ``OwnCell`` reads of the scheduler's view: servers, and that no request is under way."""

    servers: dict[ServerId, Server] = field(default_factory=dict)
    live: dict[str, object] = field(default_factory=dict)


class Cell:
    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.endpoint = f"tcp://{name}:5600"
        self._world = world
        self._life = 0
        self.is_frozen = False
        self.begin()

    @property
    def works(self) -> bool:
        return self.is_up and not self.is_frozen

    @property
    def is_complete(self) -> bool:
        held = {role for server in self.state.servers.values() if not server.is_leaving for role in server.serving}
        return held == set(REQUIRED)

    def begin(self) -> None:
        """A new incarnation, which knows nobody."""
        self._life += 1
        self.is_up = True
        self.state = _Known()
        gateway = f"{self.name}-{self._life}"
        rules = PoolRules(gateway, HEARTBEAT_SECONDS, LIVENESS_SECONDS, max_servers=self._world.fleet.most)
        self.roster = Roster(rules)
        self.own = OwnCell(
            self.name,
            gateway,
            cast(View, self.state),
            moves=self.roster.moves,
            ready=lambda: self.is_complete,
            under_way=lambda: 0,
            clock=lambda: self._world.now,
        )
        self._steadiness = Steadiness()
        self._told: dict[str, tuple[CellState, float]] = {}
        """What the others have said, and when."""
        self._said: tuple[object, CellState] | None = None
        self._changes = 0
        self._restless_until = 0.0
        """For so long it remembers whom it has sent."""
        self._busy_until = 0.0
        self._unread: list[tuple[ServerId, ToGateway]] = []

    def end(self) -> None:
        """As ``kill -9``: the kernel closes what was open."""
        self.is_up = self.is_frozen = False
        self.own.is_draining = False
        for stage in self._world.stages:
            if stage.is_connected_to(self):
                self._world.after(self._world.times.one_way, lambda s=stage, c=stage.connection: s.cut(c))  # type: ignore[misc]

    def thaw(self) -> None:
        self.is_frozen = False
        unread, self._unread = self._unread, []
        for server, message in unread:
            self.hear(server, message)
        self.look()

    def drain(self) -> None:
        self.own.is_draining = True
        self._changes += 1
        self.look(again=False)

    @property
    def is_drained(self) -> bool:
        return self.own.is_draining and self.own.leaving == 0 and self.own.is_empty

    def hear(self, server: ServerId, message: ToGateway) -> None:
        """One after the other; introductions take the processor's time."""
        if self.is_frozen:
            self._unread.append((server, message))
        elif self.is_up:
            cost = self._world.times.introduction if isinstance(message, Hello) else 0.0
            self._busy_until = max(self._busy_until, self._world.now) + cost
            life = self._life
            self._world.after(self._busy_until - self._world.now, lambda: self._read(server, message, life))

    def disconnected(self, server: ServerId) -> None:
        if self.works:
            self._do(self.roster.lose(server, "its connection ended"))
        elif self.is_up:
            self._world.after(ASK_SECONDS, lambda: self.disconnected(server))  # seen once it works again

    def said(self) -> CellState:
        """Of itself. Made anew only where something may have changed since, as it takes the simulation long."""
        at = self._changes, int(self._world.now) if self._world.now < self._restless_until else None
        if self._said is None or self._said[0] != at:
            self._said = at, self.own.state()
        return self._said[1]

    def look(self, *, again: bool = True) -> None:
        """What the keeper does once a second, or more often while it ends."""
        if self.works:
            self._do(self.roster.tick(self._world.now))
            self._act()
            for other in self._world.cells:  # what they answer now counts at the next look
                if other is not self and other.works:
                    self._told[other.name] = other.said(), self._world.now
        if again and not self.is_frozen:
            self._world.after(DRAINING_SECONDS if self.own.is_draining else ASK_SECONDS, self.look)

    def _act(self) -> None:
        now = self._world.now
        others = [told for told, heard in self._told.values() if now - heard < SILENCE_SECONDS]
        moves = list(self._steadiness.now_of(self.said(), others, now))
        if not moves:
            return
        departures = self.own.departures()
        for move in moves:
            if self.own.is_draining or departures.safe(move.holds):
                self.carry_out(move, departures)
                self._steadiness.acted(move, now)

    def carry_out(self, move: Move, departures: Departures) -> None:
        was_complete = self.is_complete
        chosen = departures.choose(move.holds, move.target)
        if chosen is None:
            return
        self._changes += 1
        self._restless_until = self._world.now + RETURNED_SECONDS + ASK_SECONDS
        for server in chosen:
            server.is_leaving = True
            self._send(server.id, MoveTo(endpoint=f"tcp://{move.target}:5600"))
        self._world.seen.moves[move.why.name.lower()] += 1
        self._world.seen.last_move = self._world.now
        if was_complete and not self.is_complete and not self.own.is_draining:
            self._world.seen.broken.append(self.name)

    def _read(self, server: ServerId, message: ToGateway, life: int) -> None:
        if life == self._life and self.is_up:
            if self.is_frozen:
                self._unread.append((server, message))
            else:
                self._do(self.roster.hear(server, message, self._world.now))

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(server=server, message=message):
                    self._send(server, message)
                case Joined(server=server, hello=hello):
                    self._changes += 1
                    self.state.servers[server] = _server(server, hello, self._world.now)
                case Lost(server=server):
                    self._changes += 1
                    self.state.servers.pop(server, None)
                case _:
                    pass

    def _send(self, server: ServerId, message: ToStage) -> None:
        stage = self._world.named[server_name(server)]
        if stage.id == server and stage.is_connected_to(self):
            connection = stage.connection
            self._world.after(self._world.times.one_way, lambda: stage.hear(message, connection))


def _server(server: ServerId, hello: Hello, now: float) -> Server:
    spec = translate.server_spec(server, hello)
    return Server(spec, now, spec.roles, {})
