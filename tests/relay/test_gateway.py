"""How the gateway reaches servers behind relays: with which it proves them, by that it fetches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.stages.paths import Pathfinder
from gateway.stages.prober import Prober
from gateway.stages.result_fetcher import ResultFetcher
from gateway.stages.sockets import Sockets
from wire.bundle import pack
from wire.doors import Doors
from wire.errors import InputLost, Loss
from wire.paths import holder_of
from wire.types import Handle

HANDLE = Handle("ab" * 16)
PICTURE = bytes(range(256)) * 1000
LOOKUP = {HANDLE: pack({"image": PICTURE})}.get


@pytest.fixture
async def pathfinder() -> AsyncIterator[Pathfinder]:
    sockets, doors = Sockets(), Doors(asyncio.get_running_loop())
    yield Pathfinder(Prober(sockets, 10.0), ResultFetcher(sockets, 10.0), doors)
    sockets.close()
    await doors.close()


async def test_through_a_relay(relaying, behind, pathfinder) -> None:
    relay = relaying()
    holder = behind(relay, LOOKUP)
    assert await pathfinder.probe(holder_of(holder.ref(HANDLE))) == ""
    assert await pathfinder.fetch(holder.ref(HANDLE)) == PICTURE
    assert relay.relay.counts.nbytes > len(PICTURE)


async def test_directly_where_that_works(relaying, behind, pathfinder) -> None:
    relay = relaying()
    holder = behind(relay, LOOKUP)
    assert await pathfinder.fetch(holder.ref(HANDLE, direct=holder.holder.endpoint)) == PICTURE
    assert relay.relay.counts.streams == 0


async def test_every_address_that_fails_is_told(relaying, behind, pathfinder) -> None:
    relay = relaying()
    holder = behind(relay, LOOKUP)
    relay.stop()
    fault = await pathfinder.probe(holder_of(holder.ref(HANDLE)))
    assert fault == (
        "tcp://127.0.0.1:1: connection refused: nothing listens there; "
        f"{holder.endpoint}: connection refused: nothing listens there"
    )
    with pytest.raises(InputLost) as raised:
        await pathfinder.fetch(holder.ref(HANDLE))
    assert raised.value.reason is Loss.UNREACHABLE


async def test_an_input_that_is_gone_is_no_matter_of_the_way(relaying, behind, pathfinder) -> None:
    holder = behind(relaying(), LOOKUP)
    with pytest.raises(InputLost) as raised:
        await pathfinder.fetch(holder.ref(Handle("cd" * 16)))
    assert raised.value.reason is Loss.MISSING
    assert await pathfinder.fetch(holder.ref(HANDLE)) == PICTURE
