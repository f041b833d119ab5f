"""Uploads served to, and pictures fetched from, the stage servers' own data sockets."""

from __future__ import annotations

import asyncio

import pytest
import zmq

from gateway.stages.result_fetcher import ResultFetcher
from gateway.stages.sockets import Sockets
from gateway.stages.uploads import Uploads
from gateway.storage.room import Room, RoomTaken
from stage_server.data.consumer import Consumer
from stage_server.data.holder import Holder
from tests.curve import generate_keys
from tests.descriptors import none_left
from wire.bundle import pack, unpack
from wire.errors import InputLost, Loss
from wire.to_stage import InputRef
from wire.transfer import CHUNK_BYTES, MAX_FIELDS_BYTES
from wire.types import Handle

PICTURE = bytes(range(256)) * 9000
"""More than two chunks."""
BUNDLES = {
    Handle("picture"): pack({"image": PICTURE, "format": "png"}),
    Handle("empty"): pack({"image": b""}),
    Handle("other"): pack({"latents": b"x"}),
}


def test_the_picture_takes_several_chunks():
    assert len(PICTURE) > 2 * CHUNK_BYTES


@pytest.fixture
async def sockets():
    made = Sockets()
    yield made
    made.close()


@pytest.fixture
def holder():
    holder = Holder("tcp://127.0.0.1:*", BUNDLES.get)
    yield holder
    holder.close()


def ref(holder, handle):
    return InputRef(handle=Handle(handle), endpoint=holder.endpoint)


async def test_a_picture_arrives_whole(sockets, holder):
    fetcher = ResultFetcher(sockets)
    assert await fetcher.fetch(ref(holder, "picture")) == PICTURE
    assert await fetcher.fetch(ref(holder, "empty")) == b""


async def test_many_at_once(sockets, holder):
    fetcher = ResultFetcher(sockets)
    pictures = await asyncio.gather(*(fetcher.fetch(ref(holder, "picture")) for _ in range(40)))
    assert set(pictures) == {PICTURE}
    assert len(fetcher._idle) == 1, "one connection is kept for the next"


async def test_a_picture_that_is_gone_is_lost_and_the_next_still_comes(sockets, holder):
    fetcher = ResultFetcher(sockets)
    with pytest.raises(InputLost) as lost:
        await fetcher.fetch(ref(holder, "released"))
    assert lost.value.reason is Loss.MISSING
    assert await fetcher.fetch(ref(holder, "picture")) == PICTURE


async def test_a_bundle_without_a_picture_is_malformed(sockets, holder):
    with pytest.raises(InputLost) as lost:
        await ResultFetcher(sockets).fetch(ref(holder, "other"))
    assert lost.value.reason is Loss.MALFORMED


async def test_a_silent_holder_is_given_up(sockets):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(InputLost) as lost:
            await ResultFetcher(sockets, stall_seconds=0.05).fetch(
                InputRef(handle=Handle("h"), endpoint=f"tcp://127.0.0.1:{port}")
            )
    assert lost.value.reason is Loss.STALLED


async def test_a_holder_that_speaks_nonsense_is_given_up(sockets):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as rude:
        port = rude.bind_to_random_port("tcp://127.0.0.1")
        source = InputRef(handle=Handle("h"), endpoint=f"tcp://127.0.0.1:{port}")
        fetching = asyncio.create_task(ResultFetcher(sockets).fetch(source))
        peer, _ = await asyncio.to_thread(rude.recv_multipart)
        rude.send_multipart([peer, b"nonsense"])
        with pytest.raises(InputLost) as lost:
            await fetching
    assert lost.value.reason is Loss.MALFORMED


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://no-port"])
async def test_an_address_that_is_none_is_unreachable(sockets, endpoint):
    with pytest.raises(InputLost) as lost:
        await ResultFetcher(sockets).fetch(InputRef(handle=Handle("h"), endpoint=endpoint))
    assert lost.value.reason is Loss.UNREACHABLE


async def test_encrypted_holders_need_keys_here(sockets, holder):
    source = InputRef(handle=Handle("picture"), endpoint=holder.endpoint, public_key="k" * 40)
    with pytest.raises(InputLost, match="CURVE"):
        await ResultFetcher(sockets).fetch(source)


async def test_encrypted_fetches():
    ours, theirs = generate_keys(), generate_keys()
    holder = Holder("tcp://127.0.0.1:*", BUNDLES.get, keys=theirs)
    sockets = Sockets(keys=ours, allowed={"a": theirs.public})
    try:
        source = InputRef(handle=Handle("picture"), endpoint=holder.endpoint, public_key=theirs.public)
        assert await ResultFetcher(sockets).fetch(source) == PICTURE
    finally:
        holder.close()
        sockets.close()


@pytest.fixture
async def uploads(sockets):
    router = sockets.router("tcp://127.0.0.1:*", "data", MAX_FIELDS_BYTES)
    uploads = Uploads(router, router.endpoint, "", Room(3_000_000))
    serving = asyncio.create_task(uploads.run())
    yield uploads
    assert not serving.done(), serving
    serving.cancel()


async def test_stage_servers_fetch_uploads_until_they_are_dropped(uploads):
    source = uploads.hold(PICTURE)
    consumer = Consumer(stall_seconds=5)
    try:
        bundle = await asyncio.wrap_future(consumer.fetch(source, 5))
        assert unpack(bundle)["image"] == PICTURE
        uploads.drop(source.handle)
        with pytest.raises(InputLost) as lost:
            await asyncio.wrap_future(consumer.fetch(source, 5))
    finally:
        consumer.close()
    assert lost.value.reason is Loss.MISSING
    assert uploads._room.nbytes == 0


async def test_uploads_take_no_more_room_than_allowed(uploads):
    first = uploads.hold(PICTURE)
    with pytest.raises(RoomTaken):
        uploads.hold(PICTURE)
    uploads.drop(first.handle)
    uploads.drop(first.handle)
    assert uploads.hold(PICTURE).handle != first.handle


async def test_without_descriptors_a_picture_is_lost_and_the_next_one_is_not(sockets, holder):
    fetcher = ResultFetcher(sockets)
    with none_left(), pytest.raises(InputLost, match="Too many open files") as lost:
        await fetcher.fetch(ref(holder, "picture"))
    assert lost.value.reason is Loss.UNREACHABLE
    assert await fetcher.fetch(ref(holder, "picture")) == PICTURE
