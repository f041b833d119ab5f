"""Whoever is cancelled while it writes, twice even, leaves a transaction that ends, and no connection that does not."""

from __future__ import annotations

import asyncio

from gateway.accounts.caller import Caller
from gateway.database.database import Database
from gateway.database.keys import StoredKeys

TURNS = 40
"""Of the loop, until the next of many moments to be cancelled at."""


async def turn(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_a_writer_that_is_cancelled_twice_is_in_nobodys_way(database: Database) -> None:
    stored = StoredKeys(database)
    for moment in range(30):
        digests = [bytes([moment, number]) for number in range(4)]
        writers = [asyncio.create_task(stored.create(Caller("t"), "", digest, 0.0, None)) for digest in digests[1:]]
        await turn(moment * TURNS)
        for writer in writers:
            writer.cancel()
        await turn(TURNS // 2)
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
        await stored.create(Caller("t"), "after them", digests[0], 0.0, None)
    await turn(TURNS)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert database.healthy
