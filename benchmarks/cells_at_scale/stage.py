"""A stage server of the simulation: the product's ``Link`` and ``Route``, and what they have done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stage_server.runtime.events import Effect, Exit, Reconnect, Send
from stage_server.runtime.link import Link, LinkTimes
from stage_server.runtime.route import Route
from wire.params import ModelInfo
from wire.to_gateway import Goodbye, Heartbeat, Hello, RoleInfo
from wire.to_stage import MoveTo, Refused, SayHello, ToStage, Welcome
from wire.types import Role, ServerId
from wire.version import PROTOCOL

if TYPE_CHECKING:
    from benchmarks.cells_at_scale.cell import Cell
    from benchmarks.cells_at_scale.world import World

MODEL = ModelInfo(name="m", key="m@1", family="f", dtype="bfloat16")
LEAST = 1e-6
"""Seconds to a wake-up that is due already."""


class Stage:
    def __init__(self, name: str, role: Role, endpoints: Sequence[str], world: World) -> None:
        self.name = name
        self.role = role
        self._endpoints = endpoints
        self._world = world
        self._life = 0
        self.connection = 0
        """Counts; what comes by a former one is not heard."""
        self._to: Cell | None = None
        """Whose gateway it is connected to."""
        self._waits_until = float("inf")
        self.is_leaving = False

    @property
    def id(self) -> ServerId:
        return ServerId(f"{self.name}/{self._life}")

    @property
    def cell(self) -> Cell | None:
        """Where it serves."""
        to = self._to
        return to if to is not None and to.works and self.link.welcomed and self.id in to.state.servers else None

    def is_connected_to(self, cell: Cell) -> bool:
        return self._to is cell

    def begin(self) -> None:
        self._life += 1
        self.is_leaving = False
        self.link = Link(Route(self.name, self._endpoints), LinkTimes(), self._hello, self._heartbeat)
        self._do(self.link.start(self._world.now))

    def hear(self, message: ToStage, connection: int) -> None:
        if connection != self.connection:
            return
        now = self._world.now
        self.link.heard(now)
        match message:
            case Welcome():
                self._do(self.link.welcome(message, now))
                self._world.seen.last_welcome = now
            case Refused():
                self._do(self.link.refused(message, now))
            case SayHello():
                self._do(self.link.say_hello(now))
            case MoveTo(endpoint=endpoint):
                self.is_leaving = True
                self._world.after(self._world.times.finishing, lambda: self._part(endpoint, connection))
            case _:
                pass

    def cut(self, connection: int) -> None:
        """The gateway's process has ended."""
        if connection == self.connection and self._to is not None:
            self._to = None
            self._do(self.link.disconnected(self._world.now))

    def _part(self, endpoint: str, connection: int) -> None:
        if connection == self.connection and self.link.welcomed:
            self._send(Goodbye())
            self._do(self.link.part(endpoint, self._world.now))

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    self._send(message)
                case Reconnect():
                    self._leave()
                    self._world.after(
                        effect.delay, lambda made=self.connection, to=effect.endpoint: self._dial(made, to)
                    )  # type: ignore[misc]
                case Exit():
                    self._leave()
                    self._world.seen.gave_up += 1
                    self._waits_until = float("inf")
                    self._world.after(self._world.times.restart, self.begin)
                    return
                case _:
                    pass
        self._set_alarm()

    def _leave(self) -> None:
        former, was = self._to, self.id
        self._to = None
        self.connection += 1
        self.is_leaving = False
        if former is not None:
            self._world.after(self._world.times.one_way, lambda: former.disconnected(was))

    def _dial(self, connection: int, endpoint: str) -> None:
        """There and back: the kernel of a machine whose gateway stands still accepts, and no more."""
        cell = self._world.at[endpoint]
        if not cell.is_frozen:
            self._world.after(2 * self._world.times.one_way, lambda: self._dialled(connection, cell))

    def _dialled(self, connection: int, cell: Cell) -> None:
        if connection != self.connection or self._to is not None:
            return
        if cell.works:
            self._to = cell
            self._do(self.link.connected(self._world.now))
        elif not cell.is_frozen:
            self._do(self.link.unreached(self._world.now))

    def _send(self, message: Hello | Heartbeat | Goodbye) -> None:
        if self._to is not None:
            to, me = self._to, self.id
            self._world.after(self._world.times.one_way, lambda: to.hear(me, message))

    def _set_alarm(self) -> None:
        at = max(self.link.next_wakeup(), self._world.now + LEAST)
        if at < self._waits_until:
            self._waits_until = at
            self._world.after(at - self._world.now, lambda: self._wake(at))

    def _wake(self, at: float) -> None:
        if at != self._waits_until:
            return
        self._waits_until = float("inf")
        self._do(self.link.tick(self._world.now))

    def _hello(self) -> Hello:
        return Hello(
            protocol=PROTOCOL,
            name=self.name,
            incarnation=str(self._life),
            model=MODEL,
            device_class="c",
            memory_bytes=1 << 30,
            capable={self.role: RoleInfo()},
            roles=(self.role,),
            data_endpoint="tcp://127.0.0.1:9",
            pinned=True,
            moves=True,
        )

    def _heartbeat(self, sequence: int) -> Heartbeat:
        return Heartbeat(sequence=sequence)
