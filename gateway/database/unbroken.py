"""What must not be cancelled half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


async def unbroken(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which goes on to its end even if whoever waits for it is cancelled.

    For what ends in time by itself, as transactions do.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at, or the loop would complain
        raise


def whole(
    method: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Coroutine[Any, Any, Result]]:
    """For every method that writes: a transaction that is cancelled half-way, and again while it is undone, keeps its
    connection, and the lock of SQLite's file. So whoever leaves, as a client does, leaves a transaction that ends."""

    @wraps(method)
    async def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return await unbroken(method(*args, **kwargs))

    return run
