"""One look at a cell chooses as one look for each choice did: the rule, written down plainly, is the oracle."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from gateway.cells.own import OwnCell, Process
from gateway.cells.rules import Holds, lets_go
from scheduler.transitions import JobState
from tests.cells.conftest import MODEL, Site
from wire.params import ModelInfo
from wire.types import REQUIRED, Epoch, Role

OTHER = ModelInfo(name="n", key="n@1", family="f", dtype="float32")
Choice = tuple[str, bool]
"""Who goes, and whether the cell was safe without one like it."""


def holds_of(process: Process) -> Holds:
    return frozenset((str(server.spec.model), role) for server in process for role in server.serving)


class Plainly:
    """Looks through the whole cell for each choice."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._gone: set[str] = set()

    def safe(self, holds: Holds) -> bool:
        return lets_go(Counter(map(holds_of, self._staying())), holds)

    def choose(self, holds: Holds) -> str:
        offers = [process for process in self._free() if holds_of(process) == holds]
        chosen = min(offers, key=lambda process: sum(len(each.attempts) for each in process), default=None)
        if chosen is None:
            return ""
        self._gone.add(chosen[0].id)
        return chosen[0].spec.name

    def _staying(self) -> Iterator[Process]:
        servers = self._site.scheduler.view.servers.values()
        for process in dict.fromkeys(tuple(server.sharers) or (server,) for server in servers):
            if not process[0].is_leaving and process[0].id not in self._gone:
                yield process

    def _free(self) -> Iterator[Process]:
        staying = list(self._staying())
        for process in tuple(staying):
            if any(each.switching or each.is_leaving or each.id not in self._site.movable for each in process):
                continue
            if not self._site.cell.is_draining:
                yield process
                continue
            rest = [holds_of(other) for other in staying if other is not process]
            if not {stage for stage in holds_of(process) & self._needed() if not any(stage in each for each in rest)}:
                staying.remove(process)
                yield process

    def _needed(self) -> Holds:
        jobs = [job for request in self._site.scheduler.view.live.values() for job in request.jobs.values()]
        return frozenset((str(MODEL.key), job.spec.role) for job in jobs if job.state is not JobState.DONE)


def random_site(make_site: Callable[[], Site], chance: random.Random) -> Site:
    site = make_site()
    for number in range(chance.randint(1, 25)):
        roles = [role for role in REQUIRED if chance.random() < 0.6] or [Role.DIT]
        device = f"gpu{chance.randrange(6)}/1" if chance.random() < 0.4 else ""
        model = OTHER if chance.random() < 0.3 else MODEL
        site.join(f"s{number}", *roles, device=device, moves=chance.random() < 0.9, model=model)
    if chance.random() < 0.7:
        site.request(*(role for role in REQUIRED if role is Role.DECODER or chance.random() < 0.6))
    for number, server in enumerate(site.scheduler.view.servers.values()):
        server.is_leaving = chance.random() < 0.1
        if chance.random() < 0.1:
            server.switching = (Epoch("g1", number), frozenset({Role.DIT}))
        server.attempts.update((Epoch("x", n), None) for n in range(chance.randrange(3)))  # type: ignore[misc]
    site.cell.is_draining = chance.random() < 0.7
    return site


def choices(safe: Callable[[Holds], bool], choose: Callable[[Holds], str], wanted: list[Holds]) -> list[Choice]:
    return [(choose(holds), was_safe) for holds in wanted for was_safe in (safe(holds),)]


def name_of(chosen: Process | None) -> str:
    return chosen[0].spec.name if chosen else ""


@pytest.mark.parametrize("seed", range(150))
def test_the_same_servers_go_in_the_same_order(make_site: Callable[[], Site], seed: int) -> None:
    chance = random.Random(seed)
    site = random_site(make_site, chance)
    kinds = {holds_of(server.sharers or [server]) for server in site.scheduler.view.servers.values()}
    wanted = chance.choices(sorted(kinds, key=sorted), k=30)
    plainly, departures = Plainly(site), site.cell.departures()
    assert choices(departures.safe, lambda holds: name_of(departures.choose(holds, "there")), wanted) == choices(
        plainly.safe, plainly.choose, wanted
    )


def test_the_cell_is_looked_through_once_however_many_go(make_site: Callable[[], Site]) -> None:
    site = make_site()
    for number in range(200):
        site.join(f"s{number}")
    looks = count_looks(site.cell)
    departures = site.cell.departures()
    kind = frozenset((MODEL.key, role) for role in REQUIRED)
    assert len({name_of(departures.choose(kind, "there")) for _ in range(200)}) == 200
    assert departures.choose(kind, "there") is None
    assert len(looks) <= 4


def count_looks(cell: OwnCell) -> list[None]:
    looks: list[None] = []
    look = cell._processes

    def counted() -> Iterator[Process]:
        looks.append(None)
        return look()

    cell._processes = counted  # type: ignore[method-assign]
    return looks
