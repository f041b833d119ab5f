"""How a server leaves: it takes no new work, finishes what it has, and goes within bounded time."""

from __future__ import annotations

from stage_server.runtime.events import Effect, Exit, Send
from wire.to_gateway import Leaving


class Departure:
    """For good, or for the gateway at another endpoint; the last word has the order that it is told."""

    def __init__(self, within: float) -> None:
        """``within``: seconds from the order until it leaves, whatever is left."""
        self._within = within
        self.by: float | None = None
        """It leaves then at the latest; None: it stays."""
        self._moves_to = ""
        """The other gateway's endpoint; none: for good."""

    @property
    def is_under_way(self) -> bool:
        return self.by is not None

    def is_overdue(self, now: float) -> bool:
        return self.by is not None and now >= self.by

    def told_to_end(self, now: float) -> list[Effect]:
        """By a signal. The second one is impatience."""
        if self.is_under_way and not self._moves_to:
            return [Exit(1, "told to stop a second time: leaving at once")]
        return self._begin("", now)

    def shut_down(self, now: float) -> list[Effect]:
        """By the gateway, which may say so twice."""
        return self.told_to_end(now) if not self.is_under_way or self._moves_to else []

    def move(self, endpoint: str, now: float) -> list[Effect]:
        """To another gateway; a server that leaves already does not."""
        return [] if self.is_under_way else self._begin(endpoint, now)

    def announced(self, now: float) -> list[Effect]:
        """For a gateway that has not heard of it."""
        return [Send(Leaving(within=max(0.0, self.by - now)))] if self.by is not None else []

    def arrived(self) -> None:
        """At another gateway than the one that it was on its way to: it stays there, unless it leaves for good."""
        if self._moves_to:
            self.end()

    def end(self) -> str:
        """It is gone from where it was: where to, or nothing if for good."""
        endpoint, self._moves_to, self.by = self._moves_to, "", None
        return endpoint

    @property
    def is_for_good(self) -> bool:
        return not self._moves_to

    def _begin(self, endpoint: str, now: float) -> list[Effect]:
        self._moves_to, self.by = endpoint, now + self._within
        return [Send(Leaving(within=self._within))]
