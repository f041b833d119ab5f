"""Threads of jobs, which go on to the next job: to start one takes longer than a small job."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread, current_thread

KEPT = 4
"""That wait for work."""

_Task = tuple[str, Callable[[], None]]


class Threads:
    """Daemons, as many as there is work at a time. An exception of the work ends its thread, by ``excepthook``."""

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[_Task | None]] = []
        self._is_closed = False

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Does not wait for it. ``name``: of the thread meanwhile."""
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = SimpleQueue()
            Thread(target=self._live, args=(inbox,), daemon=True).start()
        inbox.put((name, work))

    def close(self) -> None:
        """Those without work end now, the others after it."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _live(self, inbox: SimpleQueue[_Task | None]) -> None:
        while (task := inbox.get()) is not None:
            current_thread().name, work = task
            work()
            del task, work  # or what they hold would stay until the next
            if self._is_closed or len(self._idle) >= KEPT:
                return
            self._idle.append(inbox)
