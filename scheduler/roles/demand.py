"""What arrives: predicted work per stage and second, followed fast when it changes and held still when it does not.

Rate and mix (``scheduler.roles.mix``) are estimated apart, since a burst changes the first and not the second. The rate
is a mean over as many recent arrivals as look alike; when a later part of them differs from the earlier by more than
chance explains, the earlier part is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from math import sqrt

from scheduler.roles.mix import ArrivalMix
from wire.types import Role

RATE_MEMORY = 64
"""Gaps between arrivals that the rate covers at most."""
SHORTEST = 5
"""Values that either part must have."""
FIRST = 20
"""Arrivals from which on proportions are believed."""
SIGNIFICANT = 4.5
"""Standard errors between the parts' means: about one false alarm in 10⁵ comparisons of well-behaved values."""
NOTABLE = 0.1
"""Changes of less than this share are not worth being followed at once."""
SHORTEST_SPAN = 3.0
"""Seconds over which a rate is measured at least, unless the memory is full: two quick arrivals are no flood."""
SILENCE = 5.0
"""Usual gaps without an arrival after which the rate is taken to fall."""


class AdaptiveMean:
    """Mean of the latest values that seem to come from one distribution."""

    def __init__(self, memory: int) -> None:
        self._values: deque[float] = deque(maxlen=memory)
        self._fresh = False

    def add(self, value: float) -> None:
        self._values.append(value)
        self._fresh = True

    def mean(self) -> float:
        """0 without values."""
        if self._fresh:
            self._forget(_change(self._values))
            self._fresh = False
        return sum(self._values) / len(self._values) if self._values else 0.0

    def __len__(self) -> int:
        return len(self._values)

    def _forget(self, count: int) -> None:
        for _ in range(count):
            self._values.popleft()


class DemandEstimator:
    """Demand per stage in reference device-seconds per second."""

    def __init__(self, backlog_horizon: float = 30.0):
        """``backlog_horizon``: seconds within which a backlog should be worked off."""
        if backlog_horizon <= 0:
            raise ValueError(f"the backlog's horizon is above 0 s, not {backlog_horizon}")
        self._mix = ArrivalMix()
        self._gaps = AdaptiveMean(RATE_MEMORY)
        self._last: float | None = None
        self._arrivals = 0
        self._horizon = backlog_horizon

    def arrived(self, work: Mapping[Role, float], now: float) -> None:
        """A request needs ``work``, predicted reference device-seconds of each stage."""
        if self._last is not None:
            self._gaps.add(max(0.0, now - self._last))
        self._last = now
        self._arrivals += 1
        self._mix.add(work)

    @property
    def is_known(self) -> bool:
        """Enough has arrived to tell the stages' proportions from one request's way through them."""
        return self._arrivals >= FIRST

    def rate(self, now: float) -> float:
        """Requests per second."""
        span = self._gaps.mean() * len(self._gaps)
        if self._last is None or not len(self._gaps):
            return 0.0
        if len(self._gaps) < RATE_MEMORY:
            span = max(span, SHORTEST_SPAN)
        return min(len(self._gaps) / max(span, 1e-9), SILENCE / max(now - self._last, 1e-9))

    def demand(self, now: float, backlog: Mapping[Role, float] | None = None) -> dict[Role, float]:
        """``backlog``: device-seconds that admitted requests still need of each stage, queued there yet or not."""
        rate, waiting = self.rate(now), backlog or {}
        return {role: rate * mean + waiting.get(role, 0.0) / self._horizon for role, mean in self._mix.means().items()}

    def rate_doubt(self) -> float:
        """Relative standard error of the rate."""
        return 1 / sqrt(max(1, len(self._gaps)))

    def doubt(self) -> dict[Role, float]:
        """Relative standard error of each stage's share of the demand."""
        return self._mix.doubt()


def _change(values: Iterable[float]) -> int:
    """How many of the earliest values to forget: those before the clearest change, if there is a clear one.

    Where the clearest change has too few values after it, the next ones will tell.
    """
    sums = list(accumulate(values, initial=0.0))
    count, total = len(sums) - 1, sums[-1]
    if count < 2 * SHORTEST:
        return 0
    mean = total / count
    variance = sum((b - a - mean) ** 2 for a, b in pairwise(sums)) / count
    if variance <= (1e-9 * mean) ** 2:
        return 0
    # (after - before)² / (1/n + 1/m), times the count, for n values before and m after the change.
    scores = [(n * total - count * sums[n]) ** 2 / (n * (count - n)) for n in range(SHORTEST, count)]
    score = max(scores)
    earlier = SHORTEST + scores.index(score)
    before, after = sums[earlier] / earlier, (total - sums[earlier]) / (count - earlier)
    clear = score > SIGNIFICANT**2 * variance * count and abs(after - before) > NOTABLE * before
    return earlier if clear and count - earlier >= SHORTEST else 0
