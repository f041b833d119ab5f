"""What will arrive: device-seconds asked for per second, their trend, and how unsure that is.

A Kalman filter of a level with a trend (the local linear trend model; Durbin and Koopman, "Time Series Analysis by
State Space Methods", chapter 3) over short bins. What a bin holds scatters as a compound Poisson process does: by the
size of requests. A run of bins that chance does not explain is a jump, and the filter begins anew at the present level.
"""

from __future__ import annotations

from collections import deque
from math import inf, log, sqrt

BIN_SECONDS = 5.0
LEVEL_DRIFT = 0.002
"""Share of the level by which it wanders, per square root of a second: 5 % in ten minutes."""
TREND_DRIFT = 2e-5
"""Share of the level per second by which the trend does: in ten minutes by 2 % a minute."""
FADING = 1500.0
"""Seconds after which a trend is expected to have faded to a third."""
RECENT = 12
"""Bins that together may show a jump."""
SURPRISE = 10.0
"""Of the log-likelihood of their own rate over the predicted one, from which on they do: 1 in 20,000 by chance."""
FEWEST = 3
"""Bins that are needed for it; also how many bins' worth of the former rate is believed still."""
UNKNOWN_SECONDS = 180.0
"""Before anything is known, one request in so long is expected …"""
LEARNING_SECONDS = 90.0
"""… which counts as having been seen for so long, and for as long the mean of what comes is taken."""
SIZE_MEMORY = 1 / 64
"""Weight of the latest request in the mean sizes."""


class Forecast:
    """Of one model. Work is in seconds on the model's reference device class."""

    def __init__(self, now: float):
        self._bin = 0.0
        """Work that arrived since …"""
        self._bin_at = now
        self._level = self._trend = 0.0
        self._var = [0.0, 0.0, 0.0]
        """Of the level, of both together, of the trend."""
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        """Of the latest bins: the rate that they had, and the one that was predicted."""
        self._seen_seconds = self._came = 0.0
        """Since the first request, and the work that came while little was known."""
        self._size = self._square = 0.0
        """Mean of the work of a request, and of its square."""
        self.jumped_at = -inf
        """When it last began anew: what was needed before says nothing of what is needed since."""

    def arrived(self, work: float, now: float) -> None:
        """A request needs ``work`` in all."""
        self.advance(now)
        self._bin += work
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
        level, both, trend = self._var
        variance = level + 2 * reach * both + reach * reach * trend
        return max(0.0, self._level + reach * self._trend + errors * sqrt(max(0.0, variance)))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _observe(self, rate: float) -> None:
        if not self._size:
            return
        self._seen_seconds += BIN_SECONDS
        if self._seen_seconds <= LEARNING_SECONDS:
            self._learn(rate)
            return
        self._predict()
        self._recent.append((rate, self._level))
        bins = self._jump()
        if bins:
            self._begin_anew(bins)
        else:
            self._correct(rate)

    def _learn(self, rate: float) -> None:
        self._came += rate * BIN_SECONDS
        seconds = LEARNING_SECONDS + self._seen_seconds
        self._level = (self._size * LEARNING_SECONDS / UNKNOWN_SECONDS + self._came) / seconds
        self._var = [self._noise(seconds), 0.0, 0.0]

    def _noise(self, seconds: float) -> float:
        """Variance of a rate that is measured for so long."""
        return max(self._level, self._size / UNKNOWN_SECONDS) * self.burst / seconds

    def _predict(self) -> None:
        reach = _reach(BIN_SECONDS)
        level, both, trend = self._var
        scale = max(self._level, self._size / UNKNOWN_SECONDS)
        kept = 1 - BIN_SECONDS / FADING
        self._level = max(0.0, self._level + reach * self._trend)
        self._trend *= kept
        self._var = [
            level + 2 * reach * both + reach * reach * trend + (LEVEL_DRIFT * scale) ** 2 * BIN_SECONDS,
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
        best, found, came, predicted = SURPRISE, 0, 0.0, 0.0
        for count, (rate, expected) in enumerate(reversed(self._recent), start=1):
            came, predicted = came + rate, predicted + expected
            # As if bursts came by a Poisson process: k·log(k / μ) - (k - μ) for k that came and μ predicted.
            scale = BIN_SECONDS / self.burst
            mean = max(predicted, self._size / UNKNOWN_SECONDS)
            clarity = scale * ((came * log(came / mean) if came else 0.0) - came + mean)
            if clarity > best and count >= FEWEST:
                best, found = clarity, count
        return found

    def _begin_anew(self, bins: int) -> None:
        """At the mean rate of the latest bins, not quite: those that are furthest off are partly so by chance."""
        came = sum(rate for rate, _ in list(self._recent)[-bins:])
        self._level = (came + FEWEST * self._level) / (bins + FEWEST)
        self._trend = 0.0
        self.jumped_at = self._bin_at
        self._var = [self._noise(bins * BIN_SECONDS), 0.0, 0.0]
        self._recent.clear()


def _reach(ahead: float) -> float:
    """Seconds of the present trend that are to be expected, as it fades."""
    return ahead * FADING / (FADING + ahead)
