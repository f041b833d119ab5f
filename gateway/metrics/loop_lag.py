"""How late the event loop is: everything that the gateway does waits for it."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

PERIOD_SECONDS = 0.5


async def watch_loop(histogram: Any) -> NoReturn:
    """Until cancelled. ``histogram`` is that of prometheus-client."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + PERIOD_SECONDS
        await asyncio.sleep(PERIOD_SECONDS)
        histogram.observe(max(0.0, clock() - due))
