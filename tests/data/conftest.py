from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import zmq

from stage_server.data.consumer import Consumer
from stage_server.data.holder import Holder

LOOPBACK = "tcp://127.0.0.1:*"


@pytest.fixture
def holding() -> Iterator[Callable[..., Holder]]:
    """Makes holders; closes them."""
    made: list[Holder] = []

    def make(lookup, bind=LOOPBACK, **options) -> Holder:
        made.append(Holder(bind, lookup, **options))
        return made[-1]

    yield make
    for holder in made:
        holder.close()


@pytest.fixture
def consuming() -> Iterator[Callable[..., Consumer]]:
    """Makes consumers; closes them."""
    made: list[Consumer] = []

    def make(**options) -> Consumer:
        made.append(Consumer(**options))
        return made[-1]

    yield make
    for consumer in made:
        consumer.close()


@pytest.fixture
def raw_socket() -> Iterator[Callable[[int], zmq.Socket]]:
    """Plain sockets, to play a peer that misbehaves; a receive waits 10 s at most."""
    context = zmq.Context()

    def make(kind: int) -> zmq.Socket:
        socket = context.socket(kind)
        socket.linger = 0
        socket.rcvtimeo = 10_000
        return socket

    yield make
    context.destroy(linger=0)
