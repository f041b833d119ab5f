"""The five things that may be in the way to a data socket, told apart by both who try it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import zmq

from gateway.stages.prober import Prober
from gateway.stages.sockets import Sockets
from stage_server.data.prober import _greet, prepare, try_peer
from tests.curve import generate_keys
from tests.descriptors import none_left
from wire.security import CurveKeys
from wire.to_stage import TryPeer
from wire.types import ServerId

SECONDS = 1.0
Try = Callable[[TryPeer, CurveKeys | None], str]


def by_gateway(peer: TryPeer, keys: CurveKeys | None) -> str:
    async def probe() -> str:
        sockets = Sockets(keys=keys)
        try:
            return await Prober(sockets, SECONDS).probe(peer)
        finally:
            sockets.close()

    return asyncio.run(probe())


def by_stage_server(peer: TryPeer, keys: CurveKeys | None) -> str:
    return try_peer(peer, keys, SECONDS)


either = pytest.mark.parametrize("attempt", [by_gateway, by_stage_server])


def peer(endpoint: str, key: str = "") -> TryPeer:
    return TryPeer(server=ServerId("good/1"), endpoint=endpoint, public_key=key)


@either
@pytest.mark.parametrize("encrypted", [False, True])
def test_the_server_itself(holding, attempt: Try, encrypted: bool) -> None:
    theirs, ours = (generate_keys(), generate_keys()) if encrypted else (None, None)
    holder = holding({}.get, keys=theirs, identity="good/1")
    assert attempt(peer(holder.endpoint, theirs.public if theirs else ""), ours) == ""


@either
def test_another_server_or_another_life_of_it(holding, attempt: Try) -> None:
    for identity in ("other/1", "good/2"):
        fault = attempt(peer(holding({}.get, identity=identity).endpoint), None)
        assert f"another server answers there: '{identity.partition('/')[0]}'" in fault


@either
def test_a_closed_port(attempt: Try) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    assert attempt(peer(endpoint), None) == f"{endpoint}: connection refused: nothing listens there"


@either
def test_a_name_that_does_not_resolve(attempt: Try) -> None:
    assert "the name 'nowhere.invalid' does not resolve" in attempt(peer("tcp://nowhere.invalid:5601"), None)


@either
def test_another_key(holding, attempt: Try) -> None:
    holder = holding({}.get, keys=generate_keys(), identity="good/1")
    fault = attempt(peer(holder.endpoint, generate_keys().public), generate_keys())
    assert "its CURVE keys are not those expected" in fault


@either
def test_keys_on_one_side_only(holding, attempt: Try) -> None:
    keys = generate_keys()
    assert "CURVE keys" in attempt(peer(holding({}.get, keys=keys).endpoint, keys.public), None)


@either
def test_nobody_who_speaks(raw_socket, attempt: Try) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fault = attempt(peer(f"tcp://127.0.0.1:{listener.getsockname()[1]}"), None)
    assert "says nothing" in fault
    router = raw_socket(zmq.ROUTER)  # does not read
    router.bind("tcp://127.0.0.1:*")
    assert "says nothing" in attempt(peer(router.getsockopt_string(zmq.LAST_ENDPOINT)), None)


def test_without_descriptors_a_stage_server_says_so_and_lives(raw_socket) -> None:
    """The dial alone comes through at times, so what is after it is tried by itself too."""
    router = raw_socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    peer = TryPeer(server=ServerId("a/1"), endpoint=f"tcp://127.0.0.1:{port}")
    prepare()
    with none_left():
        assert "Too many open files" in try_peer(peer, None, SECONDS)
        with pytest.raises(zmq.ZMQError, match="Too many open files"):
            _greet(peer, None, 0.0)
