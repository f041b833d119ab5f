"""Holders behind a real relay and consumers that reach them, and the relay against peers that misbehave."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import zmq

from stage_server.data.relayed import TurnedAway
from stage_server.relay.relay import MAX_AWAITED
from tests.curve import generate_keys
from wire import relay as say
from wire.bundle import Bundle, pack, unpack
from wire.dial import dial, receive_from_relay, through_relay
from wire.doors import Doors
from wire.errors import InputLost, Loss
from wire.to_stage import InputRef
from wire.transfer import CHUNK_BYTES, MAX_FIELDS_BYTES, Fetch
from wire.types import Handle, ServerId
from wire.values import Tensor
from wire.version import PROTOCOL

WAIT = 90.0
HANDLE = Handle("ab" * 16)
NAME = "0" * 32
LARGE = 24 * CHUNK_BYTES
"""Of which a third comes unasked."""


def bundle(nbytes: int, seed: int = 0) -> Bundle:
    data = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return pack({"latents": Tensor("uint8", (nbytes,), data.data), "seed": seed})


def lost(future) -> InputLost:
    error = future.exception(WAIT)
    assert isinstance(error, InputLost), error
    return error


def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.005)


@pytest.fixture
def fetcher(raw_socket, loop):
    """A consumer's socket, played by the test."""

    def make(endpoint: str) -> zmq.Socket:
        dealer = raw_socket(zmq.DEALER)
        dealer.rcvhwm = 1
        dealer.connect(Doors(loop.loop).to(endpoint))
        return dealer

    return make


# --- transfers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK_BYTES, 40 * CHUNK_BYTES + 5])
def test_what_arrives_is_what_was_packed(relaying, behind, consuming, nbytes):
    sent = bundle(nbytes)
    received = consuming().fetch(behind(relaying(), {HANDLE: sent}.get).ref(HANDLE), WAIT).result(WAIT)
    assert unpack(received) == unpack(sent)


def test_who_can_be_reached_directly_is(relaying, behind, consuming):
    relay = relaying()
    holder = behind(relay, {HANDLE: bundle(1000)}.get)
    consumer = consuming()
    assert consumer.fetch(holder.ref(HANDLE, direct=holder.holder.endpoint), WAIT).result(WAIT)
    assert relay.relay.counts.streams == 0


def test_another_server_at_the_same_address_is_not_taken_for_it(relaying, behind, consuming, holding):
    """As where both networks have a 192.168.0.7."""
    relay, sent = relaying(), bundle(1000)
    other = holding({HANDLE: bundle(1000, seed=1)}.get, identity="other/1")
    received = consuming().fetch(behind(relay, {HANDLE: sent}.get).ref(HANDLE, direct=other.endpoint), WAIT)
    assert unpack(received.result(WAIT)) == unpack(sent)


def test_many_fetchers_of_many_holders_at_once(relaying, behind, consuming):
    relay = relaying()
    held = {Handle(f"{n:032x}"): bundle(100_000 * n, seed=n) for n in range(6)}
    holders = [behind(relay, held.get, name=f"good/{n}") for n in range(3)]
    consumers = [consuming(), consuming()]
    fetches = [(each.fetch(holder.ref(n), WAIT), n) for each in consumers for holder in holders for n in held]
    for fetch, handle in fetches:
        assert unpack(fetch.result(WAIT)) == unpack(held[handle])
    assert relay.relay.counts.nbytes > 2 * 3 * sum(each.nbytes for each in held.values())


def test_encryption_is_from_end_to_end(relaying, behind, consuming):
    """The relay has no keys; who expects another holder is served by none."""
    theirs = generate_keys()
    holder = behind(relaying(), {HANDLE: bundle(100)}.get, keys=theirs)
    assert unpack(consuming(generate_keys()).fetch(holder.ref(HANDLE), WAIT).result(WAIT))["seed"] == 0
    holder.public_key = generate_keys().public
    error = lost(consuming(generate_keys()).fetch(holder.ref(HANDLE), WAIT))
    assert error.reason is Loss.UNREACHABLE
    assert f"{holder.endpoint}: it hangs up in the handshake" in str(error)


def half_way(relay, behind, consuming):
    """A transfer that has begun and goes on when the event, which comes last, is set."""
    allowed = threading.Event()

    def allocate(nbytes: int) -> memoryview:
        allowed.wait(WAIT)
        return memoryview(bytearray(nbytes))

    holder, consumer = behind(relay, {HANDLE: bundle(LARGE)}.get), consuming(allocate=allocate)
    under_way = consumer.fetch(holder.ref(HANDLE), WAIT)
    until(lambda: relay.relay.counts.nbytes > CHUNK_BYTES, "it has begun")
    return holder, consumer, under_way, allowed


# --- a relay that is lost ---------------------------------------------------------------------------------------------


def test_a_transfer_that_is_cut_off_ends_at_once_and_works_when_the_relay_is_back(relaying, behind, consuming):
    relay = relaying()
    holder, consumer, under_way, allowed = half_way(relay, behind, consuming)
    relay.stop()
    allowed.set()
    error = lost(under_way)
    assert error.reason is Loss.UNREACHABLE
    assert f"{holder.endpoint}: connection refused" in str(error)
    until(lambda: not holder.relayed[0].is_joined.is_set(), "the loss is noticed")
    relaying(relay.port)
    assert holder.relayed[0].is_joined.wait(WAIT)
    assert consumer.fetch(holder.ref(HANDLE), WAIT).result(WAIT).nbytes >= LARGE


def test_the_fetch_goes_on_through_another_relay(relaying, behind, consuming):
    first, second = relaying(), relaying()
    holder = behind([first, second], {HANDLE: bundle(1000)}.get)
    consumer = consuming()
    assert consumer.fetch(holder.ref(HANDLE), WAIT).result(WAIT)
    assert (first.relay.counts.streams > 0, second.relay.counts.streams) == (True, 0)
    first.stop()
    assert consumer.fetch(holder.ref(HANDLE), WAIT).result(WAIT)
    assert second.relay.counts.streams > 0


def test_a_silent_relay_is_noticed(behind):
    """It lets the server in, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        class Silent:
            endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

        kept = []

        def play() -> None:
            connection, _ = listener.accept()
            kept.append(connection)
            connection.sendall(say.encode(say.Challenge(nonce=b"")) + say.encode(say.Granted()))

        threading.Thread(target=play, daemon=True).start()
        holder = behind(Silent, {}.get, silence_seconds=0.1)
        until(lambda: not holder.relayed[0].is_joined.is_set(), "its silence is noticed")


def test_a_relay_that_is_not_there_yet(relaying, behind):
    first = relaying()
    first.stop()
    holder = behind(first, {}.get)
    assert not holder.relayed[0].is_joined.is_set()
    relaying(first.port)
    assert holder.relayed[0].is_joined.wait(WAIT)


def test_at_its_end_a_transfer_under_way_is_finished(relaying, behind, consuming):
    relay = relaying(idle_seconds=WAIT)
    _, consumer, under_way, allowed = half_way(relay, behind, consuming)
    ending = threading.Thread(target=relay.stop, args=(WAIT,))
    ending.start()
    allowed.set()
    assert under_way.result(WAIT).nbytes >= LARGE
    consumer.close()  # or its stream would have to be silent for some time
    ending.join(WAIT)
    assert not ending.is_alive()


# --- receivers that are slow ------------------------------------------------------------------------------------------


def test_a_slow_receiver_holds_nobody_else_back(relaying, behind, consuming, fetcher):
    relay = relaying()
    holder = behind(relay, {HANDLE: bundle(LARGE)}.get)
    slow = fetcher(holder.endpoint)
    for number in range(30):  # 240 MB that it does not read
        slow.send_multipart(Fetch(HANDLE, number).request())
    until(lambda: relay.relay.streams, "it has begun")
    assert consuming().fetch(holder.ref(HANDLE), WAIT).result(WAIT).nbytes >= LARGE


def test_what_the_relay_keeps_for_a_slow_receiver_is_bounded(relaying):
    """Raw connections at both ends: what the sender gets rid of is what the system's buffers and one of ours hold."""
    relay = relaying()
    control, name = joined(relay)
    asked = socket.create_connection(("127.0.0.1", relay.port), WAIT)
    asked.sendall(say.encode(say.Fetch(protocol=PROTOCOL, name=name)))
    sender = through_relay(relay.endpoint, say.Come(protocol=PROTOCOL, stream=opened(control)), WAIT)
    sender.settimeout(0.2)
    sent = 0
    while sent < 1 << 30 and (more := sent_of(sender)):
        sent += more
    assert sent < 64 << 20


def sent_of(sender: socket.socket) -> int:
    try:
        return sender.send(bytes(1 << 16))
    except TimeoutError:
        return 0


# --- strangers, and what does not fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL",
        b"\5\1\0",
        b"\0\5hello",
        say.encode(say.Beat()),
        b"\xff\xff" + bytes(60_000),
    ],
    ids=["http", "zmtp", "socks", "no message", "out of turn", "oversized"],
)
def test_garbage_at_the_port_is_hung_up_on(relaying, behind, consuming, garbage):
    relay = relaying()
    with socket.create_connection(("127.0.0.1", relay.port), WAIT) as stranger:
        stranger.sendall(garbage)
        while heard_by(stranger):
            pass
    holder = behind(relay, {HANDLE: bundle(100)}.get)
    assert consuming().fetch(holder.ref(HANDLE), WAIT).result(WAIT).nbytes >= 100


def heard_by(stranger: socket.socket) -> bytes:
    try:
        return stranger.recv(100)
    except ConnectionResetError:
        return b""


def test_oversized_frames_through_the_relay(relaying, behind, consuming, fetcher):
    """The holder drops that connection, and serves the others."""
    holder = behind(relaying(), {HANDLE: bundle(100)}.get)
    stranger = fetcher(holder.endpoint)
    stranger.send(bytes(MAX_FIELDS_BYTES + 1))
    assert consuming().fetch(holder.ref(HANDLE), WAIT).result(WAIT)
    assert stranger.poll(100) == 0


def test_an_unknown_server(relaying, consuming):
    endpoint = say.address(relaying().endpoint, NAME)
    assert dial(endpoint) == "the server is not connected to the relay"
    ref = InputRef(handle=HANDLE, endpoint="tcp://127.0.0.1:1", relays=(endpoint,), server=ServerId("good/1"))
    error = lost(consuming().fetch(ref, WAIT))
    assert error.reason is Loss.UNREACHABLE
    assert f"{endpoint}: the server is not connected to the relay" in str(error)


def test_no_relay_at_the_address(relaying):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        assert "no relay of DisagFusion answers there" in dial(say.address(endpoint, NAME))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (say.Fetch(protocol=PROTOCOL, name=NAME), "the server is not connected"),
        (say.Come(protocol=PROTOCOL, stream=NAME), "the server is not connected"),
        (say.Seek(protocol=(99, 0), name=NAME), "99.0"),
    ],
)
def test_what_is_denied_is_said(relaying, wanted, message):
    with pytest.raises(OSError, match=message):
        through_relay(relaying().endpoint, wanted, WAIT)


def test_a_server_that_does_not_come_for_a_stream(relaying):
    relay = relaying(open_seconds=0.05)
    _control, name = joined(relay)
    with pytest.raises(OSError, match="does not come"):
        through_relay(relay.endpoint, say.Fetch(protocol=PROTOCOL, name=name), WAIT)


def test_no_more_streams_than_allowed(relaying, behind, fetcher):
    relay = relaying(max_streams=1)
    holder = behind(relay, {HANDLE: bundle(100)}.get)
    _dealer = fetcher(holder.endpoint)
    until(lambda: relay.relay.streams, "it is connected")
    through = say.way(holder.endpoint)
    with pytest.raises(OSError, match="--max-streams"):
        through_relay(relay.endpoint, say.Fetch(protocol=PROTOCOL, name=through.name), WAIT)
    assert relay.relay.counts.denied[say.Reason.FULL] == 1


def test_a_server_that_comes_for_nobody_keeps_few_waiting(relaying):
    relay = relaying(open_seconds=WAIT)
    _control, name = joined(relay)
    wanted = say.Fetch(protocol=PROTOCOL, name=name)
    waiting = [socket.create_connection(("127.0.0.1", relay.port), WAIT) for _ in range(MAX_AWAITED)]
    for each in waiting:
        each.sendall(say.encode(wanted))
    until(lambda: relay.relay.holders[name].awaited == MAX_AWAITED, "all of them wait")
    with pytest.raises(OSError, match="--max-streams"):
        through_relay(relay.endpoint, wanted, WAIT)
    for each in waiting:
        each.close()


def test_another_key_is_turned_away(relaying, behind):
    relay = relaying(key="right")
    with pytest.raises(TurnedAway, match="its key is not that of the relay"):
        behind(relay, {}.get, key="wrong")
    assert behind(relay, {}.get, key="right").relayed[0].is_joined.is_set()
    assert relay.relay.counts.denied[say.Reason.KEY] == 1


def test_a_silent_server_is_forgotten_and_one_that_answers_is_not(relaying, behind):
    relay = relaying(beat_seconds=0.02, silence_seconds=0.5)
    _control, name = joined(relay)
    alive = behind(relay, {}.get)
    until(lambda: name not in relay.relay.holders, "its silence has lasted too long")
    assert dial(alive.endpoint) == ""


def test_whoever_goes_leaves_nothing(relaying, behind, consuming):
    relay = relaying()
    holder = behind(relay, {HANDLE: bundle(100)}.get)
    consumer = consuming()
    assert consumer.fetch(holder.ref(HANDLE), WAIT).result(WAIT)
    consumer.close()
    until(lambda: not relay.relay.streams, "the stream is over")
    holder.close()
    until(lambda: not relay.relay.holders, "the holder is gone")


# --- a holder, played by the test -------------------------------------------------------------------------------------


def joined(relay) -> tuple[socket.socket, str]:
    name = os.urandom(16).hex()
    control = through_relay(relay.endpoint, say.Hold(protocol=PROTOCOL), WAIT)
    challenge = receive_from_relay(control)
    assert isinstance(challenge, say.Challenge)
    control.sendall(say.encode(say.Join(name=name, proof=say.prove("", challenge.nonce, name))))
    assert receive_from_relay(control) == say.Granted()
    return control, name


def opened(control: socket.socket) -> str:
    while True:
        message = receive_from_relay(control)
        if isinstance(message, say.Open):
            return message.stream
