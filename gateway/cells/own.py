"""This gateway's cell as others are told of it, and the choice of servers that leave it. Reads the scheduler's view."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from gateway.cells.rules import Holds, lets_go
from scheduler.state import Server
from scheduler.transitions import JobState
from scheduler.view import View
from wire.to_stage import CellState, Unit
from wire.types import Role, ServerId

RETURNED_SECONDS = 30.0
"""For which a process that came back from where it was sent is not sent again."""

Process = Sequence[Server]
"""The servers that share a device, which go together."""


class OwnCell:
    def __init__(
        self,
        name: str,
        gateway: str,
        view: View,
        moves: Callable[[ServerId], bool],
        ready: Callable[[], bool],
        under_way: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``gateway``: the incarnation; ``moves``: whether a server is one that can be told to go elsewhere;
        ``under_way``: requests and jobs, those among them of which the scheduler has not heard yet."""
        self.name = name
        self.gateway = gateway
        self.is_draining = False
        self._view = view
        self._moves = moves
        self._ready = ready
        self._under_way = under_way
        self._clock = clock
        self._going: dict[ServerId, tuple[Holds, str]] = {}
        """First server of a process that was told to go → what it held, and the cell that it goes to."""
        self._told: dict[ServerId, float] = {}
        """When it was told last."""

    def state(self) -> CellState:
        self._forget()
        free = {process[0].id for process in self._free()}
        units: Counter[tuple[Holds, bool, str]] = Counter()
        for process in self._processes():
            if not process[0].is_leaving:
                units[_holds(process), process[0].id in free, ""] += 1
        for holds, target in self._going.values():
            units[holds, False, target] += 1
        told = tuple(
            Unit(holds=_by_model(holds), count=count, moves=moves, going_to=going_to)
            for (holds, moves, going_to), count in units.items()
        )
        is_ready = self._ready() and not self.is_draining
        return CellState(name=self.name, gateway=self.gateway, draining=self.is_draining, ready=is_ready, units=told)

    @property
    def ready(self) -> bool:
        return self._ready()

    def departures(self) -> Departures:
        """As things stand: to be used up before anything else happens."""
        return Departures(self._free(), self._staying(), self._goes)

    def _goes(self, process: Process, holds: Holds, target: str) -> None:
        self._going[process[0].id] = holds, target
        self._told[process[0].id] = self._clock()

    @property
    def leaving(self) -> int:
        """Processes that have gone to another cell's gateway, or are about to."""
        self._forget()
        return len(self._going)

    @property
    def is_empty(self) -> bool:
        """Nobody is left who could go elsewhere."""
        return not any(self._can_go(process) for process in self._processes())

    def _forget(self) -> None:
        """Those that have gone, or are back."""
        leaving = {server.id for server in self._view.servers.values() if server.is_leaving}
        self._going = {server: told for server, told in self._going.items() if server in leaving}
        now = self._clock()
        self._told = {server: at for server, at in self._told.items() if now - at < RETURNED_SECONDS}

    def _free(self) -> Iterator[Process]:
        """Those that can all go at once: idle or not, they finish what they have."""
        held = self._staying()
        needed = self._needed() if self.is_draining else None
        for process in self._processes():
            holds = _holds(process)
            if not self._can_go(process):
                continue
            if needed is None:  # whether the cell can do without it is for ``rules`` to say
                yield process
            elif not _last_of(held, holds) & needed:
                held -= Counter([holds])
                yield process

    def _can_go(self, process: Process) -> bool:
        is_busy_with_roles = any(server.switching is not None for server in process)
        is_going = process[0].id in self._told or any(server.is_leaving for server in process)
        return not (is_busy_with_roles or is_going) and all(self._moves(server.id) for server in process)

    def _needed(self) -> set[tuple[str, Role]]:
        """What requests under way still wait for: everything, while one of them is not known to the scheduler."""
        if self._under_way() > len(self._view.live):
            return {stage for process in self._processes() for stage in _holds(process)}
        return {
            (request.spec.model, job.spec.role)
            for request in self._view.live.values()
            for job in request.jobs.values()
            if job.state is not JobState.DONE
        }

    def _staying(self) -> Counter[Holds]:
        return Counter(_holds(process) for process in self._processes() if not process[0].is_leaving)

    def _processes(self) -> Iterator[Process]:
        seen: set[ServerId] = set()
        for server in self._view.servers.values():
            process = server.sharers or [server]
            if process[0].id not in seen:
                seen.add(process[0].id)
                yield process


class Departures:
    """The processes that may leave a cell, each once.

    One look at the cell is enough for all of them: whoever goes first takes nothing from what the next may do, as
    ``OwnCell._free`` says who can *all* go.
    """

    def __init__(
        self, free: Iterable[Process], staying: Counter[Holds], goes: Callable[[Process, Holds, str], None]
    ) -> None:
        self._free: dict[Holds, deque[Process]] = {}
        for process in sorted(free, key=_busy):
            self._free.setdefault(_holds(process), deque()).append(process)
        self._staying = staying
        self._goes = goes

    def choose(self, holds: Holds, target: str) -> Process | None:
        """One that may go to ``target`` now, the least busy first; it is to be told, and to count as leaving."""
        offers = self._free.get(holds)
        if not offers:
            return None
        chosen = offers.popleft()
        self._staying[holds] -= 1
        self._goes(chosen, holds, target)
        return chosen

    def safe(self, holds: Holds) -> bool:
        """The cell is none the worse without one such process, as things stand and not as they are planned."""
        return lets_go(self._staying, holds)


def _busy(process: Process) -> int:
    return sum(len(server.attempts) for server in process)


def _holds(process: Iterable[Server]) -> Holds:
    return frozenset((str(server.spec.model), role) for server in process for role in server.serving)


def _last_of(held: Counter[Holds], holds: Holds) -> set[tuple[str, Role]]:
    """Those of its stages that nobody else has."""
    others = held - Counter([holds])
    return {stage for stage in holds if not any(stage in each for each in others)}


def _by_model(holds: Holds) -> dict[str, tuple[Role, ...]]:
    models = sorted({model for model, _ in holds})
    return {model: tuple(role for role in Role if (model, role) in holds) for model in models}
