"""The mixed-integer programme behind the bound and the plan, over groups of interchangeable servers, for HiGHS.

whole n_g ≥ 0: servers of group g (class, role set);  x_gk ≥ 0: servers' worth of time that g gives to role k ∈ g
Σ_(g of class c) n_g = servers of c        Σ_k x_gk ≤ n_g
Σ_g speed_ck · x_gk ≥ λ · demand_k         Σ_(g with k) n_g ≥ 1 for every role k
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

import numpy as np

from scheduler.roles.problem import Allocation, Group, Infeasible, Problem, Stage, in_order, named

DEMAND_FLOOR = 1e-3
"""Of the largest demand: an idle stage keeps a little capacity, and the programme stays well scaled."""
NODE_LIMIT = 50
"""Instead of a time limit, which would make the answer depend on the machine's load."""
CAPACITY_GAP = 1e-3
MOVES_GAP, MORE_MOVES = 0.038, 17.0
"""HiGHS stops once its answer is proven to be within ``MOVES_GAP`` of the best, relative to the objective, to which
``MORE_MOVES`` are added: with m moves it may be off by gap · (m + more). Moves are whole, so less than 1 means exact.
Exact below 9 moves and at most one too many below 35 makes gap · (9 + more) = 1 and gap · (35 + more) = 2: gap = 1/26
and more = 17, the gap rounded down to leave room for ``LARGER_SETS``. Beyond, the error nears the gap: 5 % at 55.
To prove the very last of many moves takes most of the time, and it is worth little."""
LARGER_SETS = 1e-4
"""What one more role held is worth, in moves: only breaks ties."""
INFEASIBLE = 2
"""HiGHS's status through scipy."""

PerGroup = Mapping[Group, int]
Entries = dict[int, float]


@dataclass(slots=True)
class _Rows:
    """Constraints being gathered: low ≤ row · variables ≤ high."""

    width: int
    rows: list[np.ndarray] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, entries: Entries, low: float, high: float) -> None:
        row = np.zeros(self.width)
        row[list(entries)] = list(entries.values())
        self.rows.append(row)
        self.low.append(low)
        self.high.append(high)

    def bounded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As ``milp`` takes them."""
        return np.array(self.rows), np.array(self.low), np.array(self.high)


class Programme:
    """Columns: λ (scaled to be about 1), n_g, x_gk, and l_g, the servers that leave their group."""

    def __init__(self, problem: Problem, lower: PerGroup, upper: PerGroup):
        """``lower`` and ``upper``: servers per group, over the same groups; equal ones fix the assignment."""
        self._problem = problem
        self._groups = tuple(upper)
        self._lower = [float(lower.get(group, 0)) for group in upper]
        self._upper = [float(n) for n in upper.values()]
        self._whole = self._lower != self._upper
        self._roles = in_order(problem.demand)
        self._pairs = tuple(
            (g, role) for g, (_, roles) in enumerate(self._groups) for role in self._roles if role in roles
        )
        floor = DEMAND_FLOOR * max(problem.demand.values())
        self._demand = {role: max(problem.demand[role], floor) for role in self._roles}
        self._scale = max(1, len(problem.servers)) / sum(self._demand.values())
        self._x = 1 + len(self._groups)
        self._leave = self._x + len(self._pairs)
        self._width = self._leave + len(self._groups)

    def most_capacity(self) -> Allocation:
        """Raises ``Infeasible``."""
        cost = np.zeros(self._width)
        cost[0] = -1.0
        return self._solve(cost, self._rows(), (0.0, inf), self._upper, CAPACITY_GAP)

    def fewest_moves(self, least: float, held: PerGroup) -> Allocation:
        """At least the capacity ``least``, as few servers as can be leaving their groups; then larger role sets."""
        enough = least / self._scale
        cost = np.zeros(self._width)
        cost[0] = MORE_MOVES / enough  # λ is fixed to ``enough`` below: this adds the constant ``MORE_MOVES``
        rows = self._rows()
        for g, group in enumerate(self._groups):
            cost[1 + g] = -LARGER_SETS * len(group[1])
            cost[self._leave + g] = 1.0 if group[1] else 0.0  # taking up a first role is no move
            # l_g ≥ held_g − n_g, and costs: it is what leaves the group, and 0 where the group grows.
            rows.add({1 + g: 1.0, self._leave + g: 1.0}, float(held.get(group, 0)), inf)
        return self._solve(cost, rows, (enough, enough), self._useful(held), MOVES_GAP)

    def _useful(self, held: PerGroup) -> list[float]:
        """Upper bounds with which nobody moves to a role set inside another that is open to the whole class.

        The larger set does all that the smaller one can, for the same move; without the smaller ones there is less to
        search. Who holds such a set already may stay: its bound is what is held.
        """
        sizes = self._problem.counts()
        open_to_all = [group for group, n in zip(self._groups, self._upper, strict=True) if n == sizes[group[0]]]
        bounds = list(self._upper)
        for g, (name, roles) in enumerate(self._groups):
            if any(name == other and roles < larger for other, larger in open_to_all):
                bounds[g] = float(held.get((name, roles), 0)) if roles else self._lower[g]
        return bounds

    def _rows(self) -> _Rows:
        rows = _Rows(self._width)
        if self._whole:
            for name, count in self._problem.counts().items():
                members = [1 + g for g, group in enumerate(self._groups) if group[0] == name]
                rows.add(dict.fromkeys(members, 1.0), count, count)
        for g in range(len(self._groups)):
            times = {self._x + i: 1.0 for i, (owner, _) in enumerate(self._pairs) if owner == g}
            rows.add({**times, 1 + g: -1.0}, -inf, 0.0)
        for role in self._roles:
            given = {self._x + i: self._speed(g, role) for i, (g, k) in enumerate(self._pairs) if k is role}
            rows.add({**given, 0: -self._scale * self._demand[role]}, 0.0, inf)
            rows.add({1 + g: 1.0 for g, (_, roles) in enumerate(self._groups) if role in roles}, 1.0, inf)
        return rows

    def _speed(self, g: int, role: Stage) -> float:
        return self._problem.classes[self._groups[g][0]].needs[role].speed

    def _solve(
        self, cost: np.ndarray, rows: _Rows, capacity: tuple[float, float], upper: list[float], gap: float
    ) -> Allocation:
        from scipy.optimize import Bounds, milp  # most of a second, which only those who solve have to wait

        low, high = np.zeros(self._width), np.full(self._width, inf)
        low[0], high[0] = capacity
        low[1 : self._x], high[1 : self._x] = self._lower, upper
        whole = np.zeros(self._width)
        whole[1 : self._x] = self._whole
        for limit in ({"node_limit": NODE_LIMIT}, {}):  # without a limit should that not be enough for any solution
            result = milp(
                cost,
                constraints=rows.bounded(),
                bounds=Bounds(low, high),
                integrality=whole,
                options={"mip_rel_gap": gap, **limit},
            )
            if result.x is not None:
                return self._allocation(result.x)
            if result.status == INFEASIBLE:
                break
        raise Infeasible(self._why())

    def _allocation(self, solution: np.ndarray) -> Allocation:
        counts = {group: round(solution[1 + g]) for g, group in enumerate(self._groups)}
        shares = {(self._groups[g], role): float(solution[self._x + i]) for i, (g, role) in enumerate(self._pairs)}
        return Allocation(
            capacity=float(solution[0]) * self._scale,
            counts={group: n for group, n in counts.items() if n},
            shares={key: share for key, share in shares.items() if share > 1e-9},
        )

    def _why(self) -> str:
        able: dict[str, set[Stage]] = {name: set() for name in self._problem.counts()}
        for name, roles in self._groups:
            able[name] |= roles
        servers = [
            f"{n} {name} able to hold {'/'.join(sorted(map(str, able[name]))) or 'nothing'}"
            for name, n in self._problem.counts().items()
        ]
        return f"{named(self._roles)} cannot all have a holder among {'; '.join(servers) or 'no servers'}"
