"""Virtual time, and what lies between gateways and stage servers: connections made, refused, cut, or not answered.

What decides is the product's own code: ``Link`` and ``Route`` of stage servers, ``Roster``, ``OwnCell`` and the rules
of cells of gateways. Assumed are the network, the processor time of an introduction, how long a server takes to finish
what it has when it is sent elsewhere, and how long whatever ended takes to be started again. There are no requests.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from benchmarks.cells_at_scale.cell import Cell
from benchmarks.cells_at_scale.stage import Stage
from gateway.cells.keeper import ASK_SECONDS
from wire.types import Role


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that the simulation assumes."""

    one_way: float = 0.0005
    """Of a message, or of a connection that is made, refused or cut."""
    introduction: float = 0.00076
    """Of a gateway's processor; measured: docs/cells.md."""
    finishing: float = 2.0
    """Of a server that is told to go elsewhere."""
    restart: float = 3.0
    """Of a gateway, or of a server that gave up, by whoever supervises it."""


@dataclass(frozen=True, slots=True)
class Fleet:
    cells: int = 10
    servers: int = 10_000
    most: int = 2048
    """``MAX_STAGE_SERVERS`` of each gateway."""
    roles: tuple[Role, ...] = (Role.ENCODER, Role.DECODER, *[Role.DIT] * 8)
    """Of the servers, in turn."""


@dataclass(slots=True)
class Seen:
    """What happened since somebody last took note."""

    moves: Counter[str] = field(default_factory=Counter)
    """Reason → servers that were sent elsewhere for it."""
    gave_up: int = 0
    """Servers that ended since every gateway had refused them."""
    last_welcome: float = 0.0
    last_move: float = 0.0
    broken: list[str] = field(default_factory=list)
    """Complete cells that gave away the last holder of a role, though they were not to end."""


class World:
    def __init__(self, fleet: Fleet, times: Times | None = None) -> None:
        self.fleet = fleet
        self.times = times or Times()
        self.now = 0.0
        self.seen = Seen()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.cells = [Cell(f"cell-{number:02}", self) for number in range(fleet.cells)]
        self.at = {cell.endpoint: cell for cell in self.cells}
        self.stages = [
            Stage(f"s{number}", fleet.roles[number % len(fleet.roles)], tuple(self.at), self)
            for number in range(fleet.servers)
        ]
        self.named = {stage.name: stage for stage in self.stages}
        for number, cell in enumerate(self.cells):  # not all at the same moment
            self.after(number / fleet.cells * ASK_SECONDS, cell.look)

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), what))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until

    def run_until(self, is_so: Callable[[], bool], limit: float, step: float = 0.05) -> float:
        """Virtual seconds that it took, to a ``step``."""
        began = self.now
        while not is_so():
            if self.now - began >= limit:
                raise TimeoutError(f"not so after {limit:g} simulated seconds; cells: {self.spread()}")
            self.run(step)
        return self.now - began

    @property
    def homeless(self) -> int:
        """Servers that no gateway which works has."""
        return self.fleet.servers - sum(self.spread())

    def spread(self) -> list[int]:
        """Servers of each cell whose gateway works."""
        return [len(cell.state.servers) for cell in self.cells if cell.works]

    def is_served(self) -> bool:
        return self.homeless == 0

    def rests(self, seconds: float = 10.0) -> bool:
        """Nobody has been sent or welcomed for longer than any move has to be wanted."""
        return self.now - max(self.seen.last_move, self.seen.last_welcome) > seconds

    def check(self) -> None:
        """What must hold at any moment."""
        held = Counter(server for cell in self.cells if cell.works for server in cell.roster.servers)
        twice = [server for server, times in held.items() if times > 1]
        assert not twice, f"at several gateways: {twice[:3]}"
        assert not self.seen.broken, f"complete cells were broken: {self.seen.broken}"
