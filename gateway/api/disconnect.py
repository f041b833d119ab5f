"""Work that lasts only as long as somebody waits for its result."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Result = TypeVar("Result")


async def while_connected(receive: Receive, work: Coroutine[object, object, Result]) -> Result:
    """The result of ``work``, which is cancelled, and waited for, when the client goes away first.

    The request's body must have been read: from then on ``receive`` answers only when the connection ends.
    Raises ``ClientDisconnect``.
    """
    working = asyncio.current_task()
    assert working is not None  # noqa: S101 # a coroutine that runs
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        working.cancel()

    # The work stays in the task that it is in: a task of its own, and the wait for it, cost more than the watch.
    cancelling = working.cancelling()
    watching = asyncio.create_task(watch(), name="watch client")
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and working.cancelling() == cancelling + 1:  # nobody else wants the task to end
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
        if has_left:
            working.uncancel()
