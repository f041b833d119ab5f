"""What partners leave for each other while they share a job's guided steps, beside the store of outputs.

A job has two halves of a step here at most: the last one, and the one before until the partner is seen to have it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from wire.bundle import Bundle
from wire.types import Handle

MOST_WORDS = 256
MOST_LEFT = 8
"""Halves of jobs that are over. Each may be megabytes."""


class Mailbox:
    """Thread-safe."""

    def __init__(self) -> None:
        self.on_put: Callable[[], None] = lambda: None
        """Called when something new lies here, on the thread that put it."""
        self._lock = threading.Lock()
        self._lying: dict[Handle, Bundle] = {}
        self._words: deque[Handle] = deque()
        self._left: deque[Handle] = deque()

    def get(self, handle: Handle) -> Bundle | None:
        return self._lying.get(handle)

    def put(self, handle: Handle, bundle: Bundle) -> None:
        with self._lock:
            self._lying[handle] = bundle
        self.on_put()

    def leave(self, handle: Handle) -> None:
        """Nobody will drop this one: it lies here until some others were left so."""
        with self._lock:
            if handle in self._lying:
                self._left.append(handle)
            if len(self._left) > MOST_LEFT:
                self._lying.pop(self._left.popleft(), None)

    def leave_word(self, handle: Handle, bundle: Bundle) -> None:
        """The same for something new and small, until many others have come."""
        with self._lock:
            self._words.append(handle)
            self._lying[handle] = bundle
            if len(self._words) > MOST_WORDS:
                self._lying.pop(self._words.popleft(), None)
        self.on_put()

    def drop(self, handle: Handle) -> None:
        with self._lock:
            self._lying.pop(handle, None)

    def __len__(self) -> int:
        return len(self._lying)
