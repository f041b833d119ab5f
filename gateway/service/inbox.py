"""What waits for one reader, who takes all of it at once: one wake-up, however much has come meanwhile."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    def __init__(self, most: int) -> None:
        """``most`` may wait."""
        self._most = most
        self._waiting: list[T] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        """On the event loop. Raises ``asyncio.QueueFull``."""
        if len(self._waiting) >= self._most:
            raise asyncio.QueueFull(f"{self._most} events wait already")
        self._waiting.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[T]:
        """All that waits, in the order in which it came; at least one."""
        while not self._waiting:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._waiting = self._waiting, []
        return taken
