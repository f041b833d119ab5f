"""Mixes that come and go: where one set of roles carries both, it is better than following them back and forth.

Whoever follows is late each time, by what it takes to be sure of the change and to move. Roles that carry the larger of
both demands for every stage are never late, but leave less room to each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from scheduler.roles.problem import Stage

Demand = Mapping[Stage, float]

MEMORY_SECONDS = 300.0
"""For so long a move is remembered: a mix that returns later has gone and come, and does not alternate."""
CARRIED = 0.9
"""How busy the busiest stage may be with roles that carry both mixes; beyond that they are followed."""
EXCEEDED = 1.25
"""Times its demand of both mixes that a stage may be asked for before the roles that carry them are given up."""
APART = 0.05
"""Difference in a stage's share of the demand from which on two mixes are different."""


@dataclass(frozen=True, slots=True)
class _Past:
    at: float
    demand: Demand


@dataclass(slots=True)
class _Carried:
    demand: Demand
    """The larger of both, for which the roles are."""
    seen_at: float
    """When the mixes changed places last."""
    latest: _Past | None = None
    """The one that it was then."""


class Alternation:
    """``demand``: reference device-seconds per second, as it arrives."""

    def __init__(self) -> None:
        self._past: deque[_Past] = deque(maxlen=8)
        self._carried: _Carried | None = None
        self._follow_until = -inf

    def moved(self, demand: Demand, now: float) -> None:
        """Roles were given for this demand."""
        if self._past and _distance(self._past[-1].demand, demand) < APART:
            self._past.pop()
        self._past.append(_Past(now, dict(demand)))

    def planned(self, demand: Demand, now: float) -> Demand | None:
        """What to plan for instead, if so: of two mixes that alternate the larger demand for each stage."""
        if self._carried is not None and not self._is_over(self._carried, demand, now):
            return self._carried.demand
        self._carried = None
        recent = [past.demand for past in self._past if now - past.at < MEMORY_SECONDS]
        if now < self._follow_until or len(recent) < 2:
            return None
        last = recent[-1]
        is_back = any(_distance(past, demand) + APART < _distance(last, demand) for past in recent[:-1])
        return {role: max(asked, last.get(role, 0.0)) for role, asked in demand.items()} if is_back else None

    def is_carried(self, both: Demand, capacity: float, now: float) -> bool:
        """Whether roles that serve so many times ``both`` are good enough; it is planned for from now on.

        Otherwise the mixes are followed for a while.
        """
        if capacity * CARRIED < 1:
            self._follow_until, self._carried = now + MEMORY_SECONDS, None
        elif self._carried is None:
            self._carried = _Carried(both, now)
        return self._carried is not None

    def _is_over(self, carried: _Carried, demand: Demand, now: float) -> bool:
        """One mix has stayed, or more is asked for than roles were given for."""
        nearest = min(self._past, key=lambda past: _distance(past.demand, demand), default=None)
        if nearest is not carried.latest:
            carried.latest, carried.seen_at = nearest, now
        if now - carried.seen_at < MEMORY_SECONDS:
            return any(asked > EXCEEDED * carried.demand.get(role, 0.0) for role, asked in demand.items())
        self._past.clear()
        return True


def _distance(one: Demand, other: Demand) -> float:
    """Largest difference between a stage's shares."""
    mine, theirs = (sum(demand.values()) or 1.0 for demand in (one, other))
    return max((abs(one.get(role, 0.0) / mine - share / theirs) for role, share in other.items()), default=0.0)
