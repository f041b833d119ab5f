"""One connection to a gateway, with real sockets on both ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from stage_server.runtime.line import IN_A_ROW, MOST_JOINED, Line

MUCH = 10.0
PATIENCE_MS = int(MUCH * 1000)


@asynccontextmanager
async def carried(line: Line, hear: Callable[[list[bytes]], None]) -> AsyncIterator[zmq.Socket[bytes]]:
    """The other end of the line, which is connected."""
    connected = asyncio.Event()

    def watch(frames: list[bytes]) -> None:
        if parse_monitor_message(frames)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            connected.set()

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.rcvtimeo = PATIENCE_MS
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer = context.socket(zmq.DEALER)
        dealer.identity, dealer.immediate, dealer.linger = b"server", True, 0
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        carrying = asyncio.create_task(line.carry(dealer, monitor, hear, watch))
        try:
            await asyncio.wait_for(connected.wait(), MUCH)
            yield router
        finally:
            carrying.cancel()
            with suppress(asyncio.CancelledError):
                await carrying


async def test_what_one_turn_says_goes_as_one_message_to_whoever_reads_it_so() -> None:
    line = Line()
    line.joins = True
    async with carried(line, lambda _: None) as router:
        for number in range(MOST_JOINED + 2):
            line.send(b"%d" % number)
        assert await line.emptied(MUCH)
        sizes = [len(router.recv_multipart()) - 1 for _ in range(2)]
        assert sizes == [MOST_JOINED, 2]


async def test_others_get_a_message_each_in_order() -> None:
    line = Line()
    async with carried(line, lambda _: None) as router:
        for number in range(3):
            line.send(b"%d" % number)
        assert await line.emptied(MUCH)
        assert [router.recv_multipart()[1:] for _ in range(3)] == [[b"0"], [b"1"], [b"2"]]


async def test_what_was_sent_before_there_is_a_socket_goes_once_there_is_one() -> None:
    line = Line()
    line.send(b"early")
    assert not await line.emptied(0.0)
    async with carried(line, lambda _: None) as router:
        assert await line.emptied(MUCH)
        assert router.recv_multipart() == [b"server", b"early"]


async def test_many_messages_at_once_are_all_heard_in_order() -> None:
    """More than are taken in a row: nothing wakes the line for the rest but itself."""
    heard: list[list[bytes]] = []
    done = asyncio.Event()

    def hear(frames: list[bytes]) -> None:
        heard.append(frames)
        if len(heard) == 3 * IN_A_ROW:
            done.set()

    line = Line()
    async with carried(line, hear) as router:
        line.send(b"here")
        assert await line.emptied(MUCH)
        router.recv_multipart()
        for number in range(3 * IN_A_ROW):
            router.send_multipart([b"server", b"%d" % number, b"and more"])
        await asyncio.wait_for(done.wait(), MUCH)
    assert heard == [[b"%d" % number, b"and more"] for number in range(3 * IN_A_ROW)]


async def test_what_is_said_while_hearing_is_sent() -> None:
    line = Line()
    async with carried(line, lambda frames: line.send(frames[0].upper())) as router:
        line.send(b"here")
        assert await line.emptied(MUCH)
        router.recv_multipart()
        router.send_multipart([b"server", b"a question"])
        answer = await asyncio.to_thread(router.recv_multipart)
    assert answer == [b"server", b"A QUESTION"]


async def test_a_fault_of_whoever_hears_ends_the_line() -> None:
    said = asyncio.Event()

    def hear(_: list[bytes]) -> None:
        said.set()
        raise RuntimeError("a defect")

    async def provoked() -> None:
        line = Line()
        async with carried(line, hear) as router:
            line.send(b"here")
            assert await line.emptied(MUCH)
            router.recv_multipart()
            router.send_multipart([b"server", b"anything"])
            await asyncio.wait_for(said.wait(), MUCH)
            await asyncio.sleep(0)  # its task ends in the loop's next turn

    with pytest.raises(RuntimeError, match="a defect"):
        await provoked()
