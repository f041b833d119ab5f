"""How a loop that looks into the database now and then is called before its time."""

from __future__ import annotations

import asyncio


class Bell:
    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """There may be something to do."""
        self._rung.set()

    def still(self) -> None:
        """What was rung for so far is about to be looked at."""
        self._rung.clear()

    async def wait(self, seconds: float) -> None:
        """Until it is rung, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        except TimeoutError:
            pass  # both are a reason to look
