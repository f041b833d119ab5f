"""Loopback addresses that lead through relays: kept, closed, and what happens where they lead nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.stages.result_fetcher import ResultFetcher
from gateway.stages.sockets import Sockets
from wire import doors as module
from wire.bundle import pack
from wire.dial import connected, dial
from wire.doors import Doors
from wire.errors import InputLost
from wire.relay import address
from wire.to_stage import InputRef
from wire.types import Handle

HANDLE = Handle("ab" * 16)
ONE, OTHER = address("tcp://127.0.0.1:1", "0" * 32), address("tcp://127.0.0.1:1", "1" * 32)
WAIT = 90.0


@pytest.fixture
async def shut() -> asyncio.Queue[str]:
    return asyncio.Queue()


@pytest.fixture
async def doors(shut: asyncio.Queue[str]) -> AsyncIterator[Doors]:
    made = Doors(asyncio.get_running_loop(), shut.put_nowait)
    yield made
    await made.close()


async def test_each_address_has_one_and_others_need_none(doors: Doors) -> None:
    assert doors.to("tcp://10.0.0.7:5601") == "tcp://10.0.0.7:5601"
    assert doors.to(ONE) == doors.to(ONE) != doors.to(OTHER)


async def test_the_one_used_longest_ago_is_closed(
    doors: Doors, shut: asyncio.Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DOORS", 1)
    first, second = doors.to(ONE), doors.to(OTHER)
    assert await asyncio.wait_for(shut.get(), WAIT) == first
    assert "connection refused" in await asyncio.to_thread(dial, first)
    assert await asyncio.to_thread(dial, second) == ""


async def test_where_the_relay_is_gone_the_connection_ends_and_the_door_is_told_of(
    doors: Doors, shut: asyncio.Queue[str]
) -> None:
    door = doors.to(ONE)
    connection = await asyncio.to_thread(connected, door)
    with connection:
        assert await asyncio.to_thread(connection.recv, 1) == b""
    assert await asyncio.wait_for(shut.get(), WAIT) == door


async def test_idle_connections_to_it_are_closed_then(relaying, behind) -> None:
    sockets = Sockets()
    fetcher = ResultFetcher(sockets, 1.0)
    dropped = asyncio.Event()

    def drop(door: str) -> None:
        fetcher.drop(door)
        dropped.set()

    doors = Doors(asyncio.get_running_loop(), drop)
    relay = relaying()
    holder = behind(relay, {HANDLE: pack({"image": b"picture"})}.get)
    ref = InputRef(handle=HANDLE, endpoint=doors.to(holder.endpoint))
    assert await fetcher.fetch(ref) == b"picture"
    relay.stop()
    await asyncio.wait_for(dropped.wait(), WAIT)  # it has tried to connect again
    with pytest.raises(InputLost):
        await fetcher.fetch(ref)
    sockets.close()
    await doors.close()
