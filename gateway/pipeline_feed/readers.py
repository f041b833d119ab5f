"""Who reads the stream, each at its own pace. One that does not keep up is not waited for: what was kept for it is
dropped, and when it reads on it gets the whole state anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from gateway.pipeline_feed.differ import COMPLETE, RESET, Differ, Key

MOST_BYTES = 64 << 10
"""Kept for a reader that does not read. Beside it there are one write of at most as much, and the 64 KiB after which
the HTTP server takes no more: 192 KiB together."""


Say = Callable[[bytes], bool]
"""Writes a frame at once, and answers whether it did."""


class Reader:
    def __init__(self, differ: Differ, say: Say | None = None) -> None:
        """``say``: for one that has read all so far, who need not be woken then. A hundred of them are most of what the
        feed costs."""
        self._differ = differ
        self._say = say
        self._waits = False
        """All that was kept for it is written."""
        self._frames: deque[bytes] = deque()
        self._nbytes = 0
        self._unsent: Iterator[Key] | None = None
        """Rows of the whole state that are still to be sent."""
        self._lags = True
        """Has to begin anew, as everyone does first."""
        self._something = asyncio.Event()
        self._is_over = False

    @property
    def nbytes(self) -> int:
        """Kept for it."""
        return self._nbytes

    @property
    def lags(self) -> bool:
        return self._lags

    def offer(self, frame: bytes) -> None:
        if self._lags:
            return
        if self._waits and self._say is not None and self._say(frame):
            return
        if self._nbytes + len(frame) > MOST_BYTES:
            self._frames.clear()
            self._nbytes, self._unsent, self._lags = 0, None, True
        else:
            self._frames.append(frame)
            self._nbytes += len(frame)
        self._wake()

    def close(self) -> None:
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        self._waits = False
        self._something.set()

    async def next(self) -> bytes:
        """What is to be written now, waited for; empty once it is closed.

        Differences go before rows of the whole state that are still to come, which are encoded as they are then: so a
        row never goes back in time.
        """
        while not self._is_over:
            if self._lags:
                self._lags, self._unsent = False, iter(self._differ.keys())
                return RESET
            if self._frames:
                written = b"".join(self._frames)
                self._frames.clear()
                self._nbytes = 0
                return written
            if self._unsent is not None:
                if rows := self._differ.whole(self._unsent):
                    return rows
                self._unsent = None
                return COMPLETE
            self._something.clear()
            self._waits = True
            await self._something.wait()
        return b""
