"""Whether this gateway takes new work, and how much of it is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Door:
    def __init__(self, served_elsewhere: Callable[[], bool] = lambda: False) -> None:
        """``served_elsewhere``: this gateway lacks servers for every model, and another one does not."""
        self.is_draining = False
        self.requests = 0
        """For work, under way."""
        self.jobs: Callable[[], int] = lambda: 0
        """Under way, that have no connection."""
        self._served_elsewhere = served_elsewhere

    @property
    def under_way(self) -> int:
        return self.requests + self.jobs()

    def refusal(self) -> tuple[str, str] | None:
        """Message and code, for requests that would be better off at another gateway."""
        if self.is_draining:
            return "This gateway is about to end: send the request again.", "draining"
        if self._served_elsewhere():
            return "This gateway has no servers, and others have: send the request again.", "not_ready"
        return None

    @contextmanager
    def passed(self) -> Iterator[None]:
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
