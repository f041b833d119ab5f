"""What one gateway spends as its servers grow in number: processor time in one process, without sockets and HTTP.

python -m benchmarks.cells_at_scale.costs [SERVERS …]

Thread time, so what else the machine does counts little; the best of a few rounds. Decisions of the scheduler are
``benchmarks.scheduling.decision_time``'s.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Sequence
from time import thread_time

from benchmarks.cells_at_scale.scenarios import settled
from benchmarks.cells_at_scale.stage import MODEL
from benchmarks.cells_at_scale.world import Fleet
from gateway.cells.rules import plan as plan_cells
from gateway.service import translate
from gateway.stages.liveness import PoolRules, Roster
from scheduler.core import Scheduler
from scheduler.policy import Policies
from scheduler.roles.problem import Problem, RoleNeed, Server, ServerClass
from scheduler.roles.solver import plan as plan_roles
from wire.control_codec import decode_to_gateway, encode
from wire.to_gateway import Heartbeat, Hello, RoleInfo
from wire.to_stage import CellState
from wire.types import REQUIRED, ServerId
from wire.version import PROTOCOL

SIZES = (100, 250, 500, 1000)
ROUNDS = 3
CELLS = 10


def main(sizes: Sequence[int]) -> None:
    columns = [_column(size) for size in sizes]
    print(f"| {' | '.join(['servers of a cell', *(f'{size:,}' for size in sizes)])} |")
    print(f"|---|{'---|' * len(sizes)}")
    for name in columns[0]:
        print(f"| {' | '.join([name, *(column[name] for column in columns)])} |")


def _column(size: int) -> dict[str, str]:
    beat = _heartbeat(size)
    state, shown, cells = _cells(size)
    return {
        "a heartbeat, read and answered": f"{beat * 1e6:.0f} µs",
        "heartbeats, one in 2 s each, of a core": f"{beat * size / 2:.1%}",
        "a plan of roles, two kinds of GPU, off the event loop": f"{_roles(size) * 1e3:.0f} ms",
        "what a cell says of itself, made": f"{state * 1e3:.1f} ms",
        "the same, sent": f"{len(encode(shown))} bytes",
        f"a plan for {CELLS} cells of this size, nobody moves": f"{_best(lambda: plan_cells(cells)) * 1e3:.1f} ms",
        f"for one to even out that has a tenth more than {CELLS - 1} others": f"{_even_out(cells, size) * 1e3:.0f} ms",
        "choosing all servers at a planned end": f"{_leave(size) * 1e3:.0f} ms",
        "memory of roster and scheduler for each server": f"{_bytes(size) / 1024:.1f} KiB",
    }


def _heartbeat(size: int) -> float:
    """Without the socket."""
    roster = Roster(PoolRules("g", 2.0, 10.0, max_servers=size))
    servers = [_hello(number) for number in range(size)]
    for number, hello in enumerate(servers):
        roster.hear(_id(number), hello, number / 100)  # slowly enough for all to be let in
    now = size / 100
    frame = encode(Heartbeat(sequence=1))

    def round_of_all() -> None:
        for number in range(size):
            for effect in roster.hear(_id(number), decode_to_gateway(frame), now):
                encode(effect.message)  # type: ignore[union-attr]

    return _best(round_of_all) / size


def _cells(size: int) -> tuple[float, CellState, list[CellState]]:
    world = settled(Fleet(cells=1, servers=size, most=size))
    (cell,) = world.cells
    one = cell.own.state()
    cells = [CellState(name=f"cell-{n:02}", gateway=str(n), ready=True, units=one.units) for n in range(CELLS)]
    return _best(cell.own.state), one, cells


def _even_out(cells: Sequence[CellState], size: int) -> float:
    larger = settled(Fleet(cells=1, servers=size * 11 // 10, most=size * 2)).cells[0].own.state()
    return _best(lambda: plan_cells([larger, *cells[1:]]))


def _leave(size: int) -> float:
    world = settled(Fleet(cells=1, servers=size, most=size))
    (cell,) = world.cells
    cell.own.is_draining = True
    began = thread_time()
    units_told = cell.own.state().units
    departures = cell.own.departures()
    for units in units_told:
        holds = frozenset((model, role) for model, roles in units.holds.items() for role in roles)
        for _ in range(units.count):
            for server in departures.choose(holds, "there") or ():
                server.is_leaving = True
    return thread_time() - began


def _roles(size: int) -> float:
    """Roles of servers that hold nothing: all of them move."""
    stages = REQUIRED
    gigabytes = dict(zip(stages, (10, 24, 1), strict=True))
    classes = {
        name: ServerClass(
            name, memory << 30, {stage: RoleNeed(speed, gigabytes[stage] << 30, 2 << 30) for stage in stages}
        )
        for name, memory, speed in (("large", 80, 1.0), ("small", 28, 0.5))
    }
    servers = tuple(Server(_id(number), ("large", "small")[number % 2]) for number in range(size))
    problem = Problem(classes, servers, dict(zip(stages, (0.05, 1.0, 0.1), strict=True)))
    return _best(lambda: plan_roles(problem))


def _bytes(size: int) -> float:
    roster, scheduler = Roster(PoolRules("g", 2.0, 10.0, max_servers=size)), Scheduler("g", Policies())
    tracemalloc.start()
    for number in range(size):
        hello = decode_to_gateway(encode(_hello(number)))
        assert isinstance(hello, Hello)
        roster.hear(_id(number), hello, number / 100)
        scheduler.handle(translate.joined(_id(number), hello, "g"), number / 100)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(roster.servers) == len(scheduler.view.servers) == size
    return grown / size


def _best(what: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = thread_time()
        what()
        times.append(thread_time() - began)
    return min(times)


def _id(number: int) -> ServerId:
    return ServerId(f"s{number}/1")


def _hello(number: int) -> Hello:
    return Hello(
        protocol=PROTOCOL,
        name=f"s{number}",
        incarnation="1",
        model=MODEL,
        device_class="c",
        memory_bytes=80 << 30,
        capable={role: RoleInfo() for role in REQUIRED},
        roles=(REQUIRED[number % 3],),
        data_endpoint=f"tcp://10.0.{number // 250}.{number % 250}:5601",
        limits=dict.fromkeys(REQUIRED, 2),
    )


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or SIZES)
