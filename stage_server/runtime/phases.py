"""How long a job spends on what."""

from __future__ import annotations

from enum import StrEnum
from time import monotonic, time_ns

from wire.to_gateway import Timings

REPORT_SECONDS = 0.5
"""Least time between two reports of a job's progress."""


class Phase(StrEnum):
    FETCH = "fetch"
    """Inputs, onto the device; and room for the outputs."""
    WAIT = "wait"
    """For the device."""
    COMPUTE = "compute"
    """Pauses included."""
    PUBLISH = "publish"
    """What is left without the device: copies to the host, the picture's encoding."""


class Phases:
    """Written by the job's thread alone."""

    def __init__(self) -> None:
        self.began_ns = time_ns()
        self.spans: list[tuple[Phase, int, int]] = []
        """Phase, begin and end in nanoseconds since the epoch."""
        self.paused = 0.0
        self.steps = 0
        self._calls = 0
        self._companions = 0
        self._seconds = dict.fromkeys(Phase, 0.0)
        self._now: tuple[Phase, float, int] | None = None

    def begin(self, phase: Phase) -> None:
        """Ends the one before."""
        self.end()
        self._now = phase, monotonic(), time_ns()

    def end(self) -> None:
        if self._now is not None:
            phase, began, began_ns = self._now
            seconds = monotonic() - began
            self._seconds[phase] += seconds
            self.spans.append((phase, began_ns, began_ns + int(seconds * 1e9)))
            self._now = None

    def computed(self, company: int) -> None:
        """One call of a heavy module, for which so many jobs had the device."""
        self._calls += 1
        self._companions += company

    @property
    def company(self) -> float:
        """Jobs that computed together, this one among them, in the mean over its calls."""
        return self._companions / self._calls if self._calls else 1.0

    def timings(self, peak_bytes: int) -> Timings:
        return Timings(
            wait=self._seconds[Phase.WAIT],
            fetch=self._seconds[Phase.FETCH],
            compute=self._seconds[Phase.COMPUTE] - self.paused,
            publish=self._seconds[Phase.PUBLISH],
            paused=self.paused,
            steps=self.steps,
            batch=self.company,
            peak_bytes=peak_bytes,
        )


class StepMeter:
    """Decides which steps are reported, and what a step took."""

    def __init__(self) -> None:
        self._since = 0.0
        self._steps = 0
        self._paused = 0.0

    def start(self, now: float) -> None:
        self._since, self._steps, self._paused = now, 0, 0.0

    def paused(self, seconds: float) -> None:
        self._paused += seconds

    def step(self, now: float) -> float | None:
        """Mean seconds of a step since the last report, pauses not counted; None while it is too early for another."""
        self._steps += 1
        elapsed = now - self._since
        if elapsed < REPORT_SECONDS:
            return None
        mean = (elapsed - self._paused) / self._steps
        self.start(now)
        return mean
