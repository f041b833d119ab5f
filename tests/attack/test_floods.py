"""Whoever reaches the gateway's sockets may send what they like, and much of it: others still get their pictures."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import zmq
from msgspec.structs import replace

from wire.control_codec import MAX_CONTROL_BYTES, encode
from wire.to_gateway import Heartbeat, Progress
from wire.types import Epoch


def tcp(siege) -> socket.socket:
    address = urlsplit(siege.endpoint)
    return socket.create_connection((address.hostname, address.port))


@contextmanager
def dealer(siege, identity: str) -> Iterator[zmq.Socket]:
    """May be used from any one thread; nothing limits how much waits in it."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
        opened.setsockopt(zmq.LINGER, 0)
        opened.setsockopt(zmq.SNDHWM, 0)
        opened.setsockopt(zmq.IDENTITY, identity.encode())
        opened.connect(siege.endpoint)
        yield opened


async def test_noise_on_the_control_socket(siege):
    chance = random.Random(1)
    with dealer(siege, "stranger") as stranger, dealer(siege, "two\nlines/\x1b[31m") as rude:
        for size in range(300):
            stranger.send(chance.randbytes(size))
        stranger.send_multipart([b""] * 300)
        stranger.send_multipart([b"", encode(Heartbeat(sequence=1))])
        rude.send(b"\xc1")
        await siege.stands()
        stranger.send(bytes(MAX_CONTROL_BYTES + 1))  # ends that connection
        await siege.stands()
    for _ in range(20):
        with tcp(siege) as connection:
            connection.sendall(chance.randbytes(1000))
    with tcp(siege) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
        await siege.stands()


async def test_connections_that_say_nothing(siege):
    opened = [tcp(siege) for _ in range(300)]
    await siege.stands()
    for connection in opened:
        connection.close()
    await siege.stands()


async def test_introductions_without_end(siege):
    liar = await siege.impostor("liar")
    frame = encode(liar.hello)
    for _ in range(2000):
        await liar.send_raw(frame)
    await siege.stands()
    assert len(siege.gateway.pool.vitals()) == 2


async def test_a_server_that_never_stops_talking(siege):
    """Reading what has already arrived must not keep the event loop from everything else."""
    frame = encode(Progress(epoch=Epoch("nobody", 1), step=1, steps=2, step_seconds=0.1))
    over = threading.Event()

    def talk(babbler: zmq.Socket) -> None:
        while not over.is_set():
            for _ in range(1000):
                babbler.send(frame)
            over.wait(0.005)

    liar = await siege.impostor("liar")
    with dealer(siege, "babbler/1") as babbler:
        babbler.send(encode(replace(liar.hello, name="babbler")))
        thread = threading.Thread(target=talk, args=(babbler,))
        thread.start()
        try:
            for _ in range(3):
                await siege.stands()
        finally:
            over.set()
            await asyncio.to_thread(thread.join)
    await siege.stands()
