"""Prefix sums over quantised keys that never end: a Fenwick tree that stores only the nodes in use."""

from __future__ import annotations

from typing import NamedTuple

QUANTUM = 0.01
"""Width of one cell of keys."""
FIRST_CELLS = 1 << 12
"""Room at first, in cells; it is doubled when a key is beyond it."""
UNIT = 1e-6
"""Amounts are kept as whole microseconds: sums of floats would not come back to 0."""


class Entry(NamedTuple):
    """What was added; give it back to ``remove``."""

    cell: int
    amount: int


class Fenwick:
    def __init__(self) -> None:
        self._nodes: dict[int, int] = {}
        self._cells = FIRST_CELLS
        self._total = 0

    @property
    def total(self) -> float:
        return self._total * UNIT

    def add(self, key: float, amount: float) -> Entry:
        entry = Entry(cell_of(key), round(amount / UNIT))
        self._change(entry.cell, entry.amount)
        return entry

    def remove(self, entry: Entry) -> None:
        self._change(entry.cell, -entry.amount)

    def before(self, key: float) -> float:
        """Sum of the amounts at keys up to this one, its own cell included."""
        cell, total = min(cell_of(key), self._cells), 0
        while cell > 0:
            total += self._nodes.get(cell, 0)
            cell &= cell - 1
        return total * UNIT

    def _change(self, cell: int, amount: int) -> None:
        while self._cells < cell:
            self._cells *= 2  # the new root's range is all that was there
            if self._total:
                self._nodes[self._cells] = self._total
        self._total += amount
        nodes, cells = self._nodes, self._cells
        while cell <= cells:
            value = nodes.get(cell, 0) + amount
            if value:
                nodes[cell] = value
            else:  # keys grow with time for ever; nodes that stayed would too
                nodes.pop(cell, None)
            cell += cell & -cell


def cell_of(key: float) -> int:
    return max(1, int(key / QUANTUM) + 1)
