"""What befalls simulated servers: they die, freeze, get slow, leave, or cannot be reached by others."""

from __future__ import annotations

from typing import Protocol

from scheduler import events as ev
from scheduler.sim.clock import Clock
from scheduler.sim.server import SimServer
from scheduler.sim.setup import EVERYBODY, Fault, Freeze, Kill, Leave, Scenario, SlowDown, Unreachable


class Floor(Protocol):
    """What is needed of the simulation."""

    clock: Clock
    by_name: dict[str, SimServer]

    def post(self, event: ev.Event) -> None: ...

    def kill(self, server: SimServer, restart_after: float | None = None) -> None: ...


class Faults:
    def __init__(self, floor: Floor, scenario: Scenario):
        self._floor = floor
        self._faults = scenario.faults
        self._liveness = scenario.network.liveness
        self._partitions = [fault for fault in scenario.faults if isinstance(fault, Unreachable)]

    def begin(self) -> None:
        for fault in self._faults:
            self._floor.clock.at(fault.at, self._strike, fault)

    def cut_off(self, fetcher: str, holder: str) -> bool:
        """Whether a fetcher of that name cannot reach the holder now."""
        return any(
            fault.server == holder
            and fault.at <= self._floor.clock.now < fault.until
            and not fault.fetchers.isdisjoint((fetcher, EVERYBODY))
            for fault in self._partitions
        )

    def _strike(self, fault: Fault) -> None:
        """Servers that share a device are one process: what befalls one befalls all."""
        struck = self._floor.by_name.get(fault.server)
        if struck is None:
            return
        mates = [each for each in self._floor.by_name.values() if each is struck or each.setup.shares(struck.setup)]
        for server in mates:
            self._strike_one(server, fault)

    def _strike_one(self, server: SimServer, fault: Fault) -> None:
        if not server.alive or (server.is_frozen and not isinstance(fault, Kill)):
            return
        match fault:
            case Kill(restart_after=restart_after):
                self._floor.kill(server, restart_after)
            case Freeze(seconds=seconds):
                self._freeze(server, seconds)
            case SlowDown(factor=factor):
                server.slow_down(factor)
            case Leave():
                server.leave()

    def _freeze(self, server: SimServer, seconds: float) -> None:
        server.freeze()
        self._floor.clock.after(seconds, self._thaw, server, seconds)
        if seconds > self._liveness:
            self._floor.clock.after(self._liveness, self._floor.post, ev.ServerLost(server.id, "silent"))

    def _thaw(self, server: SimServer, seconds: float) -> None:
        server.thaw()
        if server.alive and seconds > self._liveness:
            server.hello()
