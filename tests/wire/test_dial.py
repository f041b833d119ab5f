"""What a peer says of itself before any handshake."""

from __future__ import annotations

import socket
import threading

import pytest
import zmq

from tests.curve import generate_keys
from tests.descriptors import none_left
from wire.dial import announced_mechanism, dial


@pytest.mark.parametrize("mechanism", ["NULL", "CURVE"])
def test_the_mechanism_of_a_listening_socket(mechanism):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        if mechanism == "CURVE":
            router.curve_server, router.curve_secretkey = True, generate_keys().secret.encode()
        port = router.bind_to_random_port("tcp://127.0.0.1")
        assert {announced_mechanism(f"tcp://127.0.0.1:{port}") for _ in range(20)} == {mechanism}


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request and what else it has to say", b"\xff" + bytes(20)])
def test_no_zeromq_socket_announces_nothing(said):
    def answer():
        with listener.accept()[0] as client:
            client.recv(64)
            client.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=answer)
        thread.start()
        assert announced_mechanism(endpoint) == ""
        thread.join()
    assert announced_mechanism(endpoint) == "", "nobody listens"


def test_without_descriptors_nobody_is_dialled_and_that_is_said():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        assert dial(endpoint) == ""
        with none_left():
            assert "Too many open files" in dial(endpoint)
