"""Ends the process when its event loop stands still: an extension that hangs while it holds the interpreter's lock.

No code of ours can run then, so ``faulthandler``'s own thread has to do it. The gateway has missed the heartbeats long
before; what is gained is the restart.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

BEATS = 10
"""Times that the loop has to give a sign in the time that it is granted."""


@asynccontextmanager
async def loop_guarded(seconds: float) -> AsyncIterator[None]:
    """While this lasts, a loop that stands still for ``seconds`` ends the process with status 1, and the stacks of all
    threads go to stderr; 0: never.
    """
    if not seconds:
        yield
        return
    beating = asyncio.create_task(_beat(seconds), name="loop guard")
    try:
        yield
    finally:
        beating.cancel()
        faulthandler.cancel_dump_traceback_later()


async def _beat(seconds: float) -> NoReturn:
    while True:
        faulthandler.dump_traceback_later(seconds, exit=True)
        await asyncio.sleep(seconds / BEATS)
