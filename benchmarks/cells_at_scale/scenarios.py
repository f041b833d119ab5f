"""What happens to ten cells, and what is noted of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from benchmarks.cells_at_scale.world import Fleet, Seen, World
from wire.types import Role

PATIENCE = 3600.0
"""Simulated seconds, after which a scenario has failed."""
FROZEN_SECONDS = 60.0
WATCHED_SECONDS = 60.0
"""Simulated seconds for which a fleet that has no room for all is watched."""


@dataclass(frozen=True, slots=True)
class Outcome:
    scenario: str
    served: float | None
    """Simulated seconds until every server was at a gateway that works; None: always but for moments, or never."""
    rest: float | None
    """Until nobody was sent elsewhere any more."""
    spread: tuple[int, ...]
    """Servers of each cell then."""
    moves: Mapping[str, int]
    gave_up: int = 0


def started(fleet: Fleet) -> World:
    """All of it at the same moment, as after a power cut."""
    world = World(fleet)
    for stage in world.stages:
        stage.begin()
    return world


def settled(fleet: Fleet) -> World:
    """Evenly spread, and at rest."""
    world = started(fleet)
    _watch(world, "")
    return world


def start(world: World) -> Outcome:
    return _watch(world, "all servers and gateways start at once")


def loss(world: World) -> Outcome:
    world.cells[0].end()
    return _watch(world, "a gateway is killed and stays away")


def restart(world: World) -> Outcome:
    world.cells[0].end()
    world.after(world.times.restart, world.cells[0].begin)
    return _watch(world, f"a gateway is killed, and back after {world.times.restart:g} s")


def frozen(world: World) -> Outcome:
    world.cells[0].is_frozen = True
    world.after(FROZEN_SECONDS, world.cells[0].thaw)
    return _watch(world, f"a gateway stands still for {FROZEN_SECONDS:g} s", least=FROZEN_SECONDS + 1)


def rolling(world: World) -> Outcome:
    """One after the other, the next when the last is ready; as docs/cells.md says."""
    began, seen = world.now, world.seen
    for cell in world.cells:
        cell.drain()
        _until(world, lambda cell=cell: cell.is_drained)  # type: ignore[misc]
        cell.end()
        world.run(world.times.restart)
        cell.begin()
        _until(world, lambda cell=cell: cell.is_complete)  # type: ignore[misc]
    outcome = _watch(world, "all gateways are restarted in turn", began=began, seen=seen)
    return replace(outcome, served=None)  # no server is without a gateway for longer than its way takes


def with_too_few(fleet: Fleet) -> World:
    """One encoder and one decoder less than there are cells."""
    few = fleet.cells - 1
    dits = fleet.servers - 2 * few
    return started(replace(fleet, roles=(*[Role.ENCODER] * few, *[Role.DECODER] * few, *[Role.DIT] * dits)))


def too_few(world: World) -> Outcome:
    return _watch(world, "start, with encoders and decoders for all cells but one")


def without_room(fleet: Fleet) -> World:
    """Gateways that take as many as they have and a few more, as 1,024 are beside 1,000."""
    return settled(replace(fleet, most=round(fleet.servers / fleet.cells * 1.024)))


def no_room(world: World) -> Outcome:
    world.cells[0].end()
    world.seen = Seen()
    world.run(WATCHED_SECONDS)
    world.check()
    name = f"a gateway is killed, and the others take {world.fleet.most:,} servers each"
    return Outcome(name, None, None, tuple(world.spread()), dict(world.seen.moves), world.seen.gave_up)


@dataclass(frozen=True, slots=True)
class Scenario:
    before: Callable[[Fleet], World]
    what: Callable[[World], Outcome]

    def of(self, fleet: Fleet) -> Outcome:
        return self.what(self.before(fleet))


SCENARIOS: Mapping[str, Scenario] = {
    "start": Scenario(started, start),
    "loss": Scenario(settled, loss),
    "restart": Scenario(settled, restart),
    "frozen": Scenario(settled, frozen),
    "rolling": Scenario(settled, rolling),
    "too-few": Scenario(with_too_few, too_few),
    "no-room": Scenario(without_room, no_room),
}


def _watch(
    world: World, name: str, *, least: float = 0.0, began: float | None = None, seen: Seen | None = None
) -> Outcome:
    """From ``began``, else from now, until all rests; and for ``least`` simulated seconds."""
    began = world.now if began is None else began
    world.seen = seen = seen or Seen()
    _until(world, world.is_served)
    served = seen.last_welcome - began
    world.run(least)
    _until(world, lambda: world.is_served() and world.rests())
    rest = max(seen.last_move, seen.last_welcome) - began
    return Outcome(name, served, rest, tuple(world.spread()), dict(seen.moves), seen.gave_up)


def _until(world: World, is_so: Callable[[], bool]) -> None:
    """With what must hold at any moment looked at once a simulated second."""

    def step() -> bool:
        if world.now >= step_at[0]:
            world.check()
            step_at[0] = world.now + 1.0
        return is_so()

    step_at = [world.now]
    world.run_until(step, PATIENCE)
    world.check()
