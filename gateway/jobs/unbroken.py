"""What must not be cancelled half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def unbroken(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which goes on to its end even if whoever waits for it is cancelled.

    For transactions, which end in time by themselves: one that is cancelled half-way may keep SQLite's only writing
    connection.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, or the loop would complain
        raise
