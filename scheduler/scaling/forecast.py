"""What will arrive: device-seconds asked for per second, their trend, and how unsure that is.

A Kalman filter of a level with a trend (the local linear trend model; Durbin and Koopman, "Time Series Analysis by
State Space Methods", chapter 3) over short bins. What a bin holds scatters as a compound Poisson process does: by the
size of requests. A run of bins that chance does not explain, after what was expected before it, is a jump, and the
filter begins anew at the present level.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf, log, sqrt

BIN_SECONDS = 5.0
LEVEL_DRIFT = 0.002
"""Share of the level by which it wanders, per square root of a second: 5 % in ten minutes."""
TREND_DRIFT = 2e-5
"""Share of the level per second by which the trend does: in ten minutes by 2 % a minute."""
FADING = 1500.0
"""Seconds after which a trend is expected to have faded to a third."""
RECENT = 36
"""Bins that together may show a jump: where requests are few and large, a fourfold one may take minutes to be clear."""
SURPRISE = 8.0
"""Of the log-likelihood of their own rate over the predicted one, from which on they do: 1 in 3,000 by chance."""
FEWEST = 3
"""Bins that are needed for it; also how many bins' worth of the former rate is believed still."""
UNKNOWN_SECONDS = 180.0
"""Before anything is known, one request in so long is expected …"""
PRIOR_SECONDS = 30.0
"""… which counts as having been seen for so long."""
LEARNING_SECONDS = 90.0
"""For which the mean of what comes is taken at first."""
SIZE_MEMORY = 1 / 64
"""Weight of the latest request in the mean sizes."""


@dataclass(frozen=True, slots=True)
class _Bin:
    """What came in one, and what was expected before it."""

    rate: float
    level: float
    trend: float
    var: list[float]


class Forecast:
    """Of one model. Work is in seconds on the model's reference device class."""

    def __init__(self, now: float):
        self._bin = 0.0
        """Work that arrived since …"""
        self._bin_at = now
        self._level = self._trend = 0.0
        self._var = [0.0, 0.0, 0.0]
        """Of the level, of both together, of the trend."""
        self._recent: deque[_Bin] = deque(maxlen=RECENT)
        self._seen_seconds = self._came = 0.0
        """Since the first request, and the work that came after it while little was known."""
        self._size = self._square = 0.0
        """Mean of the work of a request, and of its square."""
        self.jumped_at = -inf
        """When it last began anew: what was needed before says nothing of what is needed since."""

    def arrived(self, work: float, now: float) -> None:
        """A request needs ``work`` in all."""
        self.advance(now)
        self._bin += work
        if not self._size:
            self._came = -work  # time is counted from the first request, which therefore says nothing of a rate
        gain = SIZE_MEMORY if self._size else 1.0
        self._size += gain * (work - self._size)
        self._square += gain * (work * work - self._square)

    def advance(self, now: float) -> None:
        """Time has passed."""
        while now - self._bin_at >= BIN_SECONDS:
            self._bin_at += BIN_SECONDS
            self._observe(self._bin / BIN_SECONDS)
            self._bin = 0.0

    @property
    def burst(self) -> float:
        """Seconds of work that arrive at once, for variances: the mean of squares over the mean."""
        return self._square / self._size if self._size else 0.0

    def rate(self, ahead: float, errors: float = 0.0) -> float:
        """Work per second ``ahead`` seconds from now, so many standard errors above what is expected; 0 or more."""
        reach = _reach(ahead)
        return max(0.0, self._level + reach * self._trend + errors * sqrt(max(0.0, _variance(self._var, reach))))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _observe(self, rate: float) -> None:
        if not self._size:
            return
        self._seen_seconds += BIN_SECONDS
        if self._seen_seconds <= LEARNING_SECONDS:
            self._learn(rate)
            return
        self._predict()
        self._recent.append(_Bin(rate, self._level, self._trend, self._var))
        bins = self._jump()
        if bins:
            self._begin_anew(bins)
        else:
            self._correct(rate)

    def _learn(self, rate: float) -> None:
        self._came += rate * BIN_SECONDS
        seconds = PRIOR_SECONDS + self._seen_seconds
        self._level = (self._size * PRIOR_SECONDS / UNKNOWN_SECONDS + self._came) / seconds
        self._var = [self._noise(seconds), 0.0, 0.0]

    def _noise(self, seconds: float) -> float:
        """Variance of a rate that is measured for so long."""
        return max(self._level, self._size / UNKNOWN_SECONDS) * self.burst / seconds

    def _predict(self) -> None:
        reach = _reach(BIN_SECONDS)
        _, both, trend = self._var
        scale = max(self._level, self._size / UNKNOWN_SECONDS)
        kept = 1 - BIN_SECONDS / FADING
        self._level = max(0.0, self._level + reach * self._trend)
        self._trend *= kept
        self._var = [
            _variance(self._var, reach) + (LEVEL_DRIFT * scale) ** 2 * BIN_SECONDS,
            kept * (both + reach * trend),
            kept * kept * trend + (TREND_DRIFT * scale) ** 2 * BIN_SECONDS,
        ]

    def _correct(self, rate: float) -> None:
        level, both, trend = self._var
        total = level + self._noise(BIN_SECONDS)
        off = rate - self._level
        self._level = max(0.0, self._level + level / total * off)
        self._trend += both / total * off
        self._var = [level - level * level / total, both - both * level / total, trend - both * both / total]

    def _jump(self) -> int:
        """How many of the latest bins are of another rate, more clearly than any other number of them; 0: none."""
        best, found, came = SURPRISE, 0, 0.0
        for count, first in enumerate(reversed(self._recent), start=1):
            came += first.rate
            clarity = self._clarity(came / count, first, count * BIN_SECONDS) if count >= FEWEST else 0.0
            if clarity > best:
                best, found = clarity, count
        return found

    def _clarity(self, rate: float, first: _Bin, seconds: float) -> float:
        """Log-likelihood of the mean ``rate`` since the ``first`` bin, over that of what was expected before it.

        By what was expected since, a jump would hide itself: the filter follows it, only too slowly.
        """
        reach = _reach(seconds / 2)
        expected = max(first.level + reach * first.trend, self._size / UNKNOWN_SECONDS)
        # A level that wanders is, in the mean of some time, a third of the way.
        unsure = _variance(first.var, reach) + (LEVEL_DRIFT * expected) ** 2 * seconds / 3
        # As if bursts came by a Poisson process, larger ones the less is known of its rate: k·log(k / μ) - (k - μ) for
        # k that came and μ expected.
        burst = self.burst + unsure * seconds / expected
        return seconds / burst * ((rate * log(rate / expected) if rate else 0.0) - rate + expected)

    def _begin_anew(self, bins: int) -> None:
        """At the mean rate of the latest bins, not quite: those that are furthest off are partly so by chance."""
        came = sum(each.rate for each in list(self._recent)[-bins:])
        self._level = (came + FEWEST * self._level) / (bins + FEWEST)
        self._trend = 0.0
        self.jumped_at = self._bin_at
        self._var = [self._noise(bins * BIN_SECONDS), 0.0, 0.0]
        self._recent.clear()


def _variance(var: list[float], reach: float) -> float:
    """Of a level and so many seconds of its trend."""
    level, both, trend = var
    return level + 2 * reach * both + reach * reach * trend


def _reach(ahead: float) -> float:
    """Seconds of the present trend that are to be expected, as it fades."""
    return ahead * FADING / (FADING + ahead)
