"""Starts and stops simulated servers as the autoscaler decides; takes spot machines away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from scheduler import events as ev
from scheduler.coming import Source
from scheduler.scaling.pools import Pool
from scheduler.scaling.scaler import Autoscaler
from scheduler.sim.clock import Clock
from scheduler.sim.metrics import Start
from scheduler.sim.server import SimServer
from scheduler.sim.setup import PoolSetup, Scenario, ServerSetup
from scheduler.view import View
from wire.types import ServerId, server_name


class Wish(Protocol):
    """What is read of ``scheduler.scaling.records.PoolOrder``."""

    @property
    def pool(self) -> Pool: ...

    @property
    def wanted(self) -> int: ...

    @property
    def drain(self) -> Sequence[ServerId]: ...


class Scaler(Source, Protocol):
    """``scheduler.scaling.scaler.Autoscaler``, or what is compared with it."""

    @property
    def interval_seconds(self) -> float: ...

    def note(self, event: ev.Event, now: float) -> None: ...

    def decide(self, now: float) -> Iterable[Wish]: ...


Scaling = Callable[[Scenario, View], Scaler]
"""Makes the one of a run."""


def predicted(scenario: Scenario, view: View) -> Autoscaler:
    return Autoscaler([setup.pool for setup in scenario.pools], view)


class Floor(Protocol):
    """What is needed of the simulation."""

    clock: Clock
    servers: dict[ServerId, SimServer]

    def join(self, setup: ServerSetup) -> None: ...

    def post(self, event: ev.Event) -> None: ...

    def kill(self, server: SimServer, restart_after: float | None = None) -> None: ...


@dataclass(slots=True)
class _Held:
    """Of one pool."""

    setup: PoolSetup
    count: int = 0
    """Ever started."""
    coming: list[Start] = field(default_factory=list)
    here: list[Start] = field(default_factory=list)
    going: set[str] = field(default_factory=set)
    """Names of those that were told to go."""
    doomed: set[str] = field(default_factory=set)
    """Names of those whose machines will be taken away."""


class Launcher:
    def __init__(self, floor: Floor, pools: Sequence[PoolSetup], scaler: Scaler, seed: int):
        self.scaler = scaler
        self._floor = floor
        self._held = {setup.pool.name: _Held(setup) for setup in pools}
        self._chance = Random(f"{seed}/starts")
        self._starts: list[Start] = []

    def open(self) -> None:
        """The servers that a pool begins with are here at once."""
        for held in self._held.values():
            setup = held.setup
            for _ in range(setup.pool.min if setup.begin is None else setup.begin):
                self._start(held, 0.0)
            for at in setup.losses:
                self._floor.clock.at(at - setup.notice, self._announce, held, at)
        if self._held:
            self._floor.clock.after(self.scaler.interval_seconds, self._look)

    def starts(self) -> Sequence[Start]:
        return self._starts

    def gone(self, setup: ServerSetup) -> None:
        """A server has ended, for whatever reason."""
        held = self._held.get(setup.pool)
        if held is None:
            return
        for start in held.here:
            if start.server == setup.name:
                start.gone = self._floor.clock.now
        held.here = [start for start in held.here if start.server != setup.name]

    # --- inside -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        for wish in self.scaler.decide(self._floor.clock.now):
            self._follow(self._held[wish.pool.name], wish)
        self._floor.clock.after(self.scaler.interval_seconds, self._look)

    def _follow(self, held: _Held, wish: Wish) -> None:
        for server in wish.drain:
            self._drain(held, server_name(server))
        staying = sum(start.server not in held.going | held.doomed for start in held.here)
        missing = wish.wanted - staying - len(held.coming)
        for _ in range(missing):
            self._start(held, self._chance.uniform(*held.setup.cold_start))
        for _ in range(min(-missing, len(held.coming))):
            held.coming.pop().gone = self._floor.clock.now

    def _start(self, held: _Held, seconds: float) -> None:
        held.count += 1
        setup, now = held.setup.member(held.count), self._floor.clock.now
        start = Start(held.setup.pool.name, setup.name, now)
        held.coming.append(start)
        self._starts.append(start)
        self._floor.clock.after(seconds, self._ready, held, start, setup)

    def _ready(self, held: _Held, start: Start, setup: ServerSetup) -> None:
        if start in held.coming:
            held.coming.remove(start)
            held.here.append(start)
            start.ready = self._floor.clock.now
            self._floor.join(setup)

    def _drain(self, held: _Held, name: str) -> None:
        server = self._server(name)
        if name not in held.going and server is not None:
            held.going.add(name)
            server.leave()

    def _announce(self, held: _Held, at: float) -> None:
        able = [start.server for start in held.here if start.server not in held.going | held.doomed]
        server = self._server(able[0]) if able else None
        if server is not None:
            held.doomed.add(server.setup.name)
            self._floor.clock.at(at, self._take_away, server)
            self._floor.post(ev.LossAnnounced(server.id, at - self._floor.clock.now))

    def _take_away(self, server: SimServer) -> None:
        if server.alive:
            self._floor.kill(server)

    def _server(self, name: str) -> SimServer | None:
        return next((server for server in self._floor.servers.values() if server.setup.name == name), None)
