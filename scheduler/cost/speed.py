"""How fast each server is beside others of its class."""

from __future__ import annotations

from collections import OrderedDict
from math import exp, log

CLIP = log(4.0)
"""One stalled step must not brand a server."""
LEAK = 0.02
"""What all servers of a class have in common drifts into the class's own fit."""

MAX_SERVERS = 4096
"""Names remembered: where every restart brings a new one, those that say nothing for longest are forgotten."""


class SpeedFactors:
    """Exponentially weighted means of clipped log ratios observed / predicted for the class."""

    def __init__(self) -> None:
        self._factors: OrderedDict[str, float] = OrderedDict()

    def factor(self, server: str | None) -> float:
        """Multiplies the class's predicted seconds: 3 means three times slower."""
        return 1.0 if server is None else self._factors.get(server, 1.0)

    def observe(self, server: str, log_ratio: float, gain: float) -> None:
        old = log(self.factor(server))
        clipped = max(-CLIP, min(CLIP, log_ratio))
        self._factors[server] = exp(old + gain * (clipped - old) - gain * LEAK * old)
        self._factors.move_to_end(server)
        if len(self._factors) > MAX_SERVERS:
            self._factors.popitem(last=False)
