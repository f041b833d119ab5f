"""The mix of what arrives, followed as fast as the evidence allows: Bayesian online change-point detection.

Adams and MacKay, "Bayesian Online Changepoint Detection" (arXiv 0710.3742), over kinds of requests: two are of one
kind when they need nearly the same work of every stage. A *run* is the belief that the mix last changed so many
arrivals ago; it predicts the next kind by what it has counted since, and by the mix before it while it has counted
little. Runs that predict well gain weight. A kind never seen before, twice in a row after hundreds of others, is a
change almost for sure; a mixture of two that loses one takes about fifteen arrivals to be told from chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log

import numpy as np
from numpy.typing import NDArray

from wire.types import REQUIRED, ROLES, Role

MEMORY = 256.0
"""Arrivals that a run counts at most: earlier ones fade."""
HAZARD = 1 / 1000
"""Chance that the mix changes with any one arrival."""
ALIKE = log(1.25)
"""Requests of one kind differ by less than about this share in every stage's work."""
RUNS, KINDS = 32, 128
"""At most: the least likely run, the rarest kind make room."""
ELSEWHERE = 1 / 16
"""Chance of any one kind that was never seen, given that it is a new one."""
PRIOR = 0.1
"""Arrivals' worth of the mix before it that a run still believes in."""
GATHERED = 16
"""Arrivals that are taken up together, at most: one after the other, these small sums take half of the time."""
SETTLED = 1 / 32
"""Weight of the latest request in its kind's mean work."""

Array = NDArray[np.float64]


class ArrivalMix:
    """Mean work per stage of the requests that arrive now, and how sure that is."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int | None, ...], int] = {}
        self._work = np.zeros((KINDS, len(ROLES)))
        # One row per run, of which those without weight are free; the columns are kinds.
        self._weights = np.zeros(RUNS)
        self._counts = np.zeros((RUNS, KINDS))
        self._total = np.zeros(RUNS)
        self._before = np.zeros((RUNS, KINDS))
        self._prior = np.zeros(RUNS)
        self._waiting: list[Mapping[Role, float]] = []

    def add(self, work: Mapping[Role, float]) -> None:
        """A request needs ``work``, reference device-seconds per stage. Taken up with others, once somebody asks."""
        self._waiting.append(work)
        if len(self._waiting) >= GATHERED:
            self._take_up()

    def _take_up(self) -> None:
        for work in self._waiting:
            self._add(work)
        self._waiting.clear()

    def _add(self, work: Mapping[Role, float]) -> None:
        kind = self._kind(np.array([work.get(role, 0.0) for role in ROLES]))
        before, known = self._shares(), np.add.reduce(self._weights)
        changed = HAZARD * (before[kind] + ELSEWHERE) / 2
        self._weights *= (1 - HAZARD) * self._likelihood(kind)
        self._fade()
        self._begin(before, changed if known else 1.0)
        self._counts[:, kind] += 1.0
        self._total += 1.0
        self._weights /= np.add.reduce(self._weights)

    def means(self) -> dict[Role, float]:
        """Reference device-seconds per request of every stage, of optional ones where any need them; 0 without
        arrivals."""
        self._take_up()
        return _named((self._shares() @ self._work).tolist())

    def doubt(self) -> dict[Role, float]:
        """Relative standard error of each stage's share of the work; 0 where nothing is known of it."""
        self._take_up()
        mean = self._shares() @ self._work
        total = mean.sum()
        if total <= 0:
            return dict.fromkeys(REQUIRED, 0.0)
        # A kind's work beyond what it would be in the proportions of the whole.
        beyond = self._work - np.outer(self._work.sum(axis=1), mean / total)
        runs = (self._counts + self._prior[:, None] * self._before) / np.maximum(self._seen(), 1.0)[:, None]
        between = runs @ beyond
        within = (runs @ beyond**2 - between**2) / (self._seen() + 1.0)[:, None]
        error = np.sqrt(np.maximum(self._weights @ (within + between**2), 0.0))
        return _named((error / np.maximum(mean, 1e-9 * total)).tolist())

    # --- inside -------------------------------------------------------------------------------------------------------

    def _kind(self, work: Array) -> int:
        key = tuple(round(log(seconds) / ALIKE) if seconds > 0 else None for seconds in work.tolist())
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._room()
            self._kinds[key] = kind
            self._work[kind] = work
        self._work[kind] += SETTLED * (work - self._work[kind])
        return kind

    def _room(self) -> int:
        """A column for another kind: that of the rarest when there are too many."""
        if len(self._kinds) < KINDS:
            return len(self._kinds)
        rarest = int(np.argmin(self._shares()))
        self._kinds = {key: kind for key, kind in self._kinds.items() if kind != rarest}
        self._total -= self._counts[:, rarest]
        self._counts[:, rarest] = self._before[:, rarest] = 0.0
        return rarest

    def _likelihood(self, kind: int) -> Array:
        """Of the kind, by each run. The more kinds a run has seen once only, the more new ones it expects."""
        new = 1.0 + np.add.reduce(self._counts[:, : len(self._kinds)] == 1.0, axis=1, dtype=np.intp)
        likelihood: Array = (self._counts[:, kind] + new * (self._before[:, kind] + ELSEWHERE) / 2) / (
            self._total + new
        )
        return likelihood

    def _seen(self) -> Array:
        """Arrivals that each run's belief rests on."""
        return self._total + self._prior

    def _shares(self) -> Array:
        """Of the kinds, now."""
        weights = self._weights / np.maximum(self._seen(), 1.0)
        shares: Array = weights @ self._counts + (weights * self._prior) @ self._before
        return shares

    def _fade(self) -> None:
        if np.maximum.reduce(self._total) >= MEMORY:
            kept = np.minimum(1.0, (MEMORY - 1) / np.maximum(self._total, 1.0))
            self._counts[:, : len(self._kinds)] *= kept[:, None]
            self._total *= kept

    def _begin(self, before: Array, weight: float) -> None:
        """A run from this arrival on takes the place of the least likely one."""
        row = int(np.argmin(self._weights))
        self._weights[row] = weight
        self._counts[row] = self._total[row] = 0.0
        self._before[row] = before
        self._prior[row] = PRIOR if np.logical_or.reduce(before) else 0.0


def _named(values: Iterable[float]) -> dict[Role, float]:
    return {role: value for role, value in zip(ROLES, values, strict=True) if value or role in REQUIRED}
