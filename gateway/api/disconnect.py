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
    working = asyncio.create_task(work, name="generate")
    leaving = asyncio.create_task(_disconnected(receive), name="watch client")
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
