"""Whether stages can all have a holder at once, whoever holds them now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from scheduler.roles.problem import RoleSet, ServerClass, Stage

MOST_TRIED = 4096
"""Steps of the search. Few servers and stages need a few dozen; where these do not do, they are taken to fit."""


def all_fit(stages: Iterable[Stage], servers: Iterable[ServerClass]) -> bool:
    """``servers``: the class of each that may hold anything."""
    wanted = list(stages)
    counts = Counter(cls.name for cls in servers)
    classes = {cls.name: cls for cls in servers}
    spaces = [(classes[name], frozenset[Stage]()) for name, n in counts.items() for _ in range(min(n, len(wanted)))]
    return _Search(wanted).ends_well(0, spaces)


class _Search:
    """Depth first, the largest stages first. Of servers that are alike only one is tried."""

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = stages
        self._tried = 0

    def ends_well(self, placed: int, spaces: list[tuple[ServerClass, RoleSet]]) -> bool:
        if placed == len(self._stages) or self._tried >= MOST_TRIED:
            return True
        self._tried += 1
        alike = set()
        for number, (cls, held) in enumerate(spaces):
            more = held | {self._stages[placed]}
            if (cls.name, held) in alike or not cls.fits(more):
                continue
            alike.add((cls.name, held))
            if self.ends_well(placed + 1, [*spaces[:number], (cls, more), *spaces[number + 1 :]]):
                return True
        return False
