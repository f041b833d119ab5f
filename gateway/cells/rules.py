"""Where stage servers belong: what each gateway decides from what all of them say of themselves. Pure.

All plan for all, by the same rules, and each carries out what concerns its own servers: nobody has to agree with
anybody. A cell is complete for a model if each of its roles has a holder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

from wire.record import record
from wire.to_stage import CellState
from wire.types import REQUIRED, Role

Holds = frozenset[tuple[str, Role]]
"""What the servers of one process hold: model key and role."""


class Why(StrEnum):
    EVACUATE = "the gateway ends"
    COMPLETE = "a cell lacks roles that others can spare"
    GATHER = "this cell lacks roles"
    SPREAD = "others have fewer servers"


WAITS: Mapping[Why, float] = {Why.EVACUATE: 0.0, Why.COMPLETE: 2.0, Why.GATHER: 5.0, Why.SPREAD: 3.0}
"""Seconds for which a move must have been wanted before it is made: servers come and go, and news is a second old."""

SPREAD_SHARE = 0.1
"""Of a cell's servers that may be on their way at once only to even out."""


@record(frozen=True, slots=True)
class Move:
    source: str
    target: str
    """Names of cells."""
    holds: Holds
    """Any one process of the source that holds just this."""
    why: Why


def plan(cells: Iterable[CellState]) -> list[Move]:
    """What would bring all servers to where they belong, in order. Those on their way count as arrived."""
    board = _Board(cells)
    if board.open:
        _evacuate(board)
        for model in board.models():
            stuck = _complete(board, model)
            _gather(board, model, stuck)
            _spread(board, model)
    return board.moves


def lets_go(held: Counter[Holds], holds: Holds) -> bool:
    """Whether a cell with these processes is complete for the same models without one of them, and has the optional
    stages of these that it had."""
    rest = held - Counter([holds])
    complete = {model for model, _ in holds if not _missing(held, model)}
    return all(_holders(rest, stage) > 0 for stage in holds if stage[0] in complete)


def present(cell: CellState) -> Counter[Holds]:
    """Processes that are there to stay."""
    return Counter(dict(_units(cell, stays=True)))


class Steadiness:
    """Lets through what has been wanted for long enough."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, Why], float] = {}

    def due(self, moves: Iterable[Move], now: float) -> list[Move]:
        wanted = list(moves)
        kinds = {(move.target, move.why) for move in wanted}
        self._since = {kind: self._since.get(kind, now) for kind in kinds}
        return [move for move in wanted if now - self._since[move.target, move.why] >= WAITS[move.why]]

    def now_of(self, own: CellState, others: Iterable[CellState], now: float) -> Iterator[Move]:
        """What the gateway of ``own`` is to carry out, as all cells look; only so many at a time to even out."""
        wanted = [move for move in plan([own, *others]) if move.source == own.name]
        left = max(1, int(SPREAD_SHARE * sum(unit.count for unit in own.units)))
        for move in self.due(wanted, now):
            if move.why is Why.SPREAD:
                left -= 1
            if move.why is not Why.SPREAD or left >= 0:
                yield move

    def acted(self, move: Move, now: float) -> None:
        """The next to even out has to be wanted anew."""
        if move.why is Why.SPREAD:
            self._since[move.target, move.why] = now


class _Board:
    """All cells as they will be once everybody has arrived, and as the moves planned so far leave them."""

    def __init__(self, cells: Iterable[CellState]) -> None:
        known = {cell.name: cell for cell in cells}
        self.open = sorted(name for name, cell in known.items() if not cell.draining)
        self.draining = sorted(known.keys() - set(self.open))
        self.held = {name: present(cell) for name, cell in known.items()}
        self.free = {name: Counter(dict(_units(cell, movable=True))) for name, cell in known.items()}
        self.moves: list[Move] = []
        for cell in known.values():
            for unit in cell.units:
                if unit.going_to in self.held:
                    self.held[unit.going_to][_holds(unit.holds)] += unit.count

    def models(self) -> list[str]:
        return sorted({model for held in self.held.values() for holds in held for model, _ in holds})

    def missing(self, cell: str, model: str) -> set[Role]:
        return _missing(self.held[cell], model)

    def size(self, cell: str, model: str) -> int:
        """Processes are counted once: with the first of their models."""
        return sum(count for holds, count in self.held[cell].items() if _home(holds) == model)

    def spare(self, cell: str) -> Iterator[Holds]:
        """What could go now, and the cell be none the worse for it."""
        for holds in sorted(+self.free[cell], key=sorted):
            if lets_go(self.held[cell], holds):
                yield holds

    def move(self, source: str, target: str, holds: Holds, why: Why) -> None:
        self.held[source] -= Counter([holds])
        self.free[source] -= Counter([holds])
        self.held[target][holds] += 1
        self.moves.append(Move(source, target, holds, why))


def _evacuate(board: _Board) -> None:
    """To where they are missing, else to where there are fewest."""
    for source in board.draining:
        for holds in sorted(board.free[source].elements(), key=sorted):
            lacking = (cell for cell in board.open if _helps(board, cell, holds))
            target = next(lacking, None) or min(board.open, key=lambda cell: (board.size(cell, _home(holds)), cell))
            board.move(source, target, holds, Why.EVACUATE)


def _helps(board: _Board, cell: str, holds: Holds) -> bool:
    return any(role in board.missing(cell, model) for model, role in holds)


def _complete(board: _Board, model: str) -> list[str]:
    """Give cells the roles that complete ones can spare, where that suffices; the cells where it does not."""
    stuck = []
    for cell in board.open:
        before = {name: board.held[name].copy() for name in board.held}, {n: board.free[n].copy() for n in board.free}
        made = len(board.moves)
        while missing := board.missing(cell, model):
            donors = [other for other in board.open if other != cell and not board.missing(other, model)]
            donors.sort(key=lambda other: (-board.size(other, model), other))
            offers = ((other, holds) for other in donors for holds in board.spare(other))
            useful = ((other, holds) for other, holds in offers if any((model, role) in holds for role in missing))
            found = next(useful, None)
            if found is None:
                board.held, board.free = before
                del board.moves[made:]
                stuck.append(cell)
                break
            board.move(found[0], cell, found[1], Why.COMPLETE)
    return stuck


def _gather(board: _Board, model: str, stuck: list[str]) -> None:
    """Servers of cells that nobody can complete serve elsewhere, or are at least together."""
    complete = [cell for cell in board.open if cell not in stuck]
    target = (complete or board.open)[0]
    for cell in stuck:
        if cell != target:
            for holds in [each for each in board.free[cell].elements() if _home(each) == model]:
                if lets_go(board.held[cell], holds):
                    board.move(cell, target, holds, Why.GATHER)


def _spread(board: _Board, model: str) -> None:
    """One by one from the cells with the most to the one with the fewest, while that evens out."""
    cells = [cell for cell in board.open if not board.missing(cell, model)]
    donors = set(cells)
    while donors:
        source = max(sorted(donors), key=lambda cell: board.size(cell, model))
        target = min(cells, key=lambda cell: (board.size(cell, model), cell))
        if board.size(source, model) - board.size(target, model) < 2:
            return
        offers = [holds for holds in board.spare(source) if _home(holds) == model]
        if not offers:
            donors.remove(source)
            continue
        board.move(source, target, max(offers, key=lambda holds: _surplus(board, source, target, holds)), Why.SPREAD)


def _surplus(board: _Board, source: str, target: str, holds: Holds) -> int:
    """How many more holders of the scarcest of these roles there are."""
    return min(_holders(board.held[source], stage) - _holders(board.held[target], stage) for stage in holds)


def _holders(held: Counter[Holds], stage: tuple[str, Role]) -> int:
    return sum(count for holds, count in held.items() if stage in holds)


def _missing(held: Counter[Holds], model: str) -> set[Role]:
    return {role for role in REQUIRED if not _holders(held, (model, role))}


def _home(holds: Holds) -> str:
    return min((model for model, _ in holds), default="")


def _units(cell: CellState, *, stays: bool = False, movable: bool = False) -> Iterator[tuple[Holds, int]]:
    """Alike ones together."""
    found: Counter[Holds] = Counter()
    for unit in cell.units:
        if not unit.going_to and (stays or (movable and unit.moves)):
            found[_holds(unit.holds)] += unit.count
    yield from found.items()


def _holds(given: Mapping[str, tuple[Role, ...]]) -> Holds:
    return frozenset((model, role) for model, roles in given.items() for role in roles)
