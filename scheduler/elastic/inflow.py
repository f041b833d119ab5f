"""What has been admitted lately, by size: how much of what comes next will overtake a waiting job."""

from __future__ import annotations

from math import ceil, exp, inf, log2

from wire.record import record

MEMORY_SECONDS = 60.0
LEAST_SECONDS = 20.0
"""Over which a rate is measured at least."""
PER_DOUBLING = 4
"""Classes of size per factor of two."""


@record(frozen=True, slots=True)
class Overtaking:
    """What is expected to overtake a job that joins now, by how long it waits."""

    flows: tuple[tuple[float, float], ...] = ()
    """(amount, seconds after which no more of it overtakes)."""
    per_second: float = 0.0

    def within(self, seconds: float) -> float:
        """Work that goes before the job if it waits for so long."""
        total = 0.0
        for amount, until in self.flows:
            total += amount * min(seconds, until)
        return total * self.per_second


class Inflow:
    """Of one tenant at one stage. Amounts fade exponentially."""

    def __init__(self, now: float):
        self._began = now
        self._at = now
        self._classes: dict[int, float] = {}
        """Class of size → reference seconds of work, faded."""

    def add(self, size: float, work: float, now: float) -> None:
        """A job of this size (what the order goes by) with so much work at the stage."""
        fade = exp((self._at - now) / MEMORY_SECONDS)
        self._classes = {cls: amount * fade for cls, amount in self._classes.items() if amount * fade > 1e-6}
        self._at = now
        cls = ceil(log2(max(size, 1e-6)) * PER_DOUBLING)
        self._classes[cls] = self._classes.get(cls, 0.0) + work

    def rate(self, now: float) -> float:
        """Reference seconds of work per second."""
        return sum(self._classes.values()) * self._per_second(now)

    def overtaking(self, size: float, aging: float, now: float) -> Overtaking:
        """Of a job of ``size``."""
        leads = ((amount, size - 2.0 ** (cls / PER_DOUBLING)) for cls, amount in self._classes.items())
        flows = tuple(
            (amount, lead / aging if aging else inf)
            for amount, lead in leads
            if lead > 0  # its own class does not overtake
        )
        return Overtaking(flows, self._per_second(now))

    def _per_second(self, now: float) -> float:
        fade = exp((self._at - now) / MEMORY_SECONDS)
        # What a fading memory of that age weighs in all: by its full length, the first minute would look idle.
        span = MEMORY_SECONDS * (1 - exp((self._began - now) / MEMORY_SECONDS))
        return fade / max(span, LEAST_SECONDS)
