"""The pipeline as one stream of small differences, for any number of readers: a look twice a second at most, while
anybody reads, compared with the look before, encoded once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from gateway.pipeline_feed.busy import SLICE_SECONDS, Busy
from gateway.pipeline_feed.differ import Differ
from gateway.pipeline_feed.lives import Lives
from gateway.pipeline_feed.news import NewsLog
from gateway.pipeline_feed.readers import Reader, Say
from gateway.pipeline_feed.rows import Row, Tables
from gateway.pipeline_feed.snapshot import Snapshots, Sources
from scheduler import actions as act
from scheduler import events as ev
from scheduler.view import View

LOOK_SECONDS = 0.5
"""Stage servers report progress as often."""
MOST_WRITES = 50
"""Per second, to all readers: beyond 25 of them, looks are rarer."""
KEEP_ALIVE_SECONDS = 15.0
"""Of silence until a comment; proxies give connections up that say nothing for a minute."""
MOST_UNREAD = 4000
"""Events that are kept while nobody looks: those of the last hundred requests and more."""
KEEP_ALIVE = b": keep-alive\n\n"


class Feed:
    def __init__(self, view: View, sources: Sources, clock: Callable[[], float] = time.time) -> None:
        """``clock``: Unix seconds."""
        self._clock = clock
        self._view = view
        self._busy = Busy(clock())
        self._lives = Lives()
        self._news = NewsLog()
        self._snapshots = Snapshots(view, sources, self._lives, self._busy, self._news)
        self._unread: deque[tuple[ev.Event, Sequence[act.Action], float]] = deque(maxlen=MOST_UNREAD)
        self._noted = 0
        """Since ``_unread`` was last read."""
        self._differ = Differ()
        self._readers: set[Reader] = set()
        self._somebody_reads = asyncio.Event()
        self._said_at = clock()

    def note(self, event: ev.Event, actions: Sequence[act.Action], at: float) -> None:
        """What the scheduler did about ``event``, at Unix time ``at``.

        Lives of requests are put together when somebody looks: most are forgotten before.
        """
        self._busy.note(event, actions, at)
        self._news.note(event, actions, at)
        if actions or self._lives.wants(event):
            self._unread.append((event, actions, at))
            self._noted += 1

    def life(self, request: str) -> list[Row] | None:
        """Of a request under way, or one of the last that are over; None if nothing is known of it."""
        self._catch_up()
        return self._lives.life(request)

    def _catch_up(self) -> None:
        if self._noted > len(self._unread):  # what came between is lost, and with it how earlier lives went on
            self._lives.forget()
        for event, actions, at in self._unread:
            self._lives.note(event, actions, at)
        self._unread.clear()
        self._noted = 0

    def _take(self) -> Tables:
        self._catch_up()
        return self._snapshots.take()

    @contextmanager
    def reading(self, say: Say | None = None) -> Iterator[Reader]:
        """A reader, to whom the state of now and all that follows is told; by ``say``, while it keeps up."""
        if not self._readers:
            self._differ.step(self._take(), self._clock())  # nobody has looked for a while
        reader = Reader(self._differ, say)
        self._readers.add(reader)
        self._somebody_reads.set()
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """End every stream, so that the process can end."""
        for reader in self._readers:
            reader.close()

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            if self._readers:
                await asyncio.sleep(self.pause())
            else:
                self._somebody_reads.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(SLICE_SECONDS):
                        await self._somebody_reads.wait()
            self.look()

    def pause(self) -> float:
        """Seconds between two looks, with as many readers as there are."""
        return max(LOOK_SECONDS, len(self._readers) / MOST_WRITES)

    def look(self) -> None:
        """At the clock, and at the pipeline if anybody reads."""
        now = self._clock()
        if self._busy.is_due(now):
            self._busy.cut({server.id: server.spec.name for server in self._view.servers.values()}, now)
            self._snapshots.is_stale()
        if self._readers:
            self._tell(now)

    def _tell(self, now: float) -> None:
        frame = self._differ.step(self._take(), now)
        if frame is None:
            if now - self._said_at < KEEP_ALIVE_SECONDS:
                return
            frame = KEEP_ALIVE
        self._said_at = now
        for reader in self._readers:
            reader.offer(frame)
