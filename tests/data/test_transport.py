"""Holder and consumer over real sockets, and each against a peer that misbehaves."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, wait

import msgspec
import numpy as np
import pytest
import zmq

from stage_server.data.connection import Holder
from stage_server.data.consumer import MAX_FETCHES, TooManyFetches
from stage_server.data.holder import BindError
from stage_server.data.pool import BufferPool, pageable
from stage_server.data.store import OutputStore
from stage_server.data.transport import ZmqTransport
from tests.descriptors import none_left
from wire.bundle import Bundle, Limits, pack, unpack
from wire.errors import InputLost, Loss
from wire.to_stage import InputRef
from wire.transfer import CHUNK_BYTES, MAX_ANSWER_BYTES, Chunk, Fetch, Header, Pull
from wire.types import Handle, Role
from wire.values import Tensor

WAIT = 90.0
HANDLE = Handle("ab" * 16)


def bundle(nbytes: int, seed: int = 0) -> Bundle:
    data = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return pack({"latents": Tensor("uint8", (nbytes,), data.data), "seed": seed, "tail": b"end"})


def at(holder, handle=HANDLE) -> InputRef:
    return InputRef(handle=handle, endpoint=holder.endpoint)


def lost(future) -> InputLost:
    error = future.exception(WAIT)
    assert isinstance(error, InputLost)
    return error


@pytest.fixture
def silent(raw_socket):
    """A holder that accepts connections and is played by the test."""
    router = raw_socket(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")
    return router, InputRef(handle=HANDLE, endpoint=router.getsockopt_string(zmq.LAST_ENDPOINT))


@pytest.mark.parametrize("nbytes", [0, 1, 70_000, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_what_arrives_is_what_was_packed(holding, consuming, nbytes):
    sent = bundle(nbytes)
    received = consuming().fetch(at(holding({HANDLE: sent}.get)), WAIT).result(WAIT)
    assert unpack(received) == unpack(sent)


def test_many_bundles_from_many_holders_at_once(holding, consuming):
    held = {Handle(f"{n:032x}"): bundle(10_000 * n, seed=n) for n in range(20)}
    holders = [holding(held.get) for _ in range(3)]
    consumer = consuming()
    futures = {consumer.fetch(at(holder, handle), WAIT): handle for holder in holders for handle in held}
    for future, handle in futures.items():
        assert unpack(future.result(WAIT)) == unpack(held[handle])


def test_a_fetched_buffer_is_aligned_and_writable(holding, consuming):
    received = consuming().fetch(at(holding({HANDLE: bundle(1000)}.get)), WAIT).result(WAIT)
    latents = np.frombuffer(unpack(received)["latents"].data, np.uint8)
    assert latents.ctypes.data % 64 == 0
    assert latents.flags.writeable


def test_a_buffer_is_used_again_without_the_garbage_collector(holding, consuming):
    """A future that refers to itself would keep it; mapping fresh memory for every transfer halves the bandwidth."""
    made = []

    def make(nbytes):
        made.append(nbytes)
        return pageable(nbytes)

    consumer, holder = consuming(allocate=BufferPool(make)), holding({HANDLE: bundle(3 * CHUNK_BYTES)}.get)
    gc.disable()
    try:
        for _ in range(10):
            consumer.fetch(at(holder), WAIT).result(WAIT)
    finally:
        gc.enable()
    assert len(made) <= 2  # the consumer's thread may still be letting go of the one before


def test_the_allocator_is_asked_once_for_the_whole_payload(holding, consuming):
    asked = []

    def allocate(nbytes):
        asked.append(nbytes)
        return memoryview(bytearray(nbytes))

    sent = bundle(3 * CHUNK_BYTES)
    consuming(allocate=allocate).fetch(at(holding({HANDLE: sent}.get)), WAIT).result(WAIT)
    assert asked == [sent.nbytes]


def test_an_output_released_in_mid_transfer_is_lost_cleanly(holding, consuming):
    sent = bundle(20 * CHUNK_BYTES)
    asked = []

    def lookup(handle):
        asked.append(handle)
        return sent if len(asked) < 4 else None

    assert lost(consuming().fetch(at(holding(lookup)), WAIT)).reason is Loss.MISSING


def test_a_chunk_on_its_way_survives_the_release_of_its_output(holding, raw_socket):
    store = OutputStore(1 << 24)
    reservation = store.reserve(Role.DECODER, 1 << 23)
    handle = store.publish(reservation, bundle(CHUNK_BYTES))
    expected = bytes(store.get(handle).view(0, CHUNK_BYTES))
    dealer = raw_socket(zmq.DEALER)
    dealer.connect(holding(store.get).endpoint)
    dealer.send(msgspec.msgpack.encode(Pull(transfer=1, handle=handle, offset=0, length=CHUNK_BYTES)))
    assert dealer.poll(10_000)
    store.release([handle])
    assert dealer.recv_multipart()[1] == expected


def test_a_missing_handle(holding, consuming):
    error = lost(consuming().fetch(at(holding({}.get)), WAIT))
    assert (error.handle, error.reason) == (HANDLE, Loss.MISSING)


def test_a_refused_connection_fails_at_once(consuming, raw_socket):
    error = lost(consuming().fetch(InputRef(handle=HANDLE, endpoint="tcp://127.0.0.1:1"), WAIT))
    assert error.reason is Loss.UNREACHABLE
    assert "refused" in str(error)


def test_a_connection_that_takes_no_request_is_given_up(consuming, silent, monkeypatch):
    """As after a handshake that failed, before the monitor has told of it."""

    def refuse(_holder, _messages):
        raise zmq.Again

    monkeypatch.setattr(Holder, "send", refuse)
    error = lost(consuming().fetch(silent[1], WAIT))
    assert (error.reason, "no more requests" in str(error)) == (Loss.UNREACHABLE, True)


def test_an_endpoint_that_is_none(consuming):
    assert lost(consuming().fetch(InputRef(handle=HANDLE, endpoint="nonsense"), WAIT)).reason is Loss.UNREACHABLE


def test_more_than_the_consumer_may_hold(holding, consuming):
    ref = at(holding({HANDLE: bundle(2000)}.get))
    assert lost(consuming(limits=Limits(payload_bytes=1999)).fetch(ref, WAIT)).reason is Loss.TOO_LARGE


def test_no_room_for_the_payload(holding, consuming):
    def allocate(nbytes):
        raise MemoryError("pinned pool exhausted")

    error = lost(consuming(allocate=allocate).fetch(at(holding({HANDLE: bundle(9)}.get)), WAIT))
    assert error.reason is Loss.TOO_LARGE
    assert "pinned pool exhausted" in str(error)


def test_a_silent_holder_is_given_up(consuming, silent):
    _, ref = silent
    assert lost(consuming(stall_seconds=0.05).fetch(ref, WAIT)).reason is Loss.STALLED


def test_the_deadline_ends_a_fetch(consuming, silent):
    _, ref = silent
    assert lost(consuming().fetch(ref, 0.05)).reason is Loss.DEADLINE


def test_a_holder_that_closes_in_mid_transfer(consuming, silent):
    router, ref = silent
    future = consuming().fetch(ref, WAIT)
    peer, _ = router.recv_multipart()
    router.send_multipart([peer, msgspec.msgpack.encode(Header(transfer=1)), bundle(100).header])
    router.recv_multipart()
    router.close()
    error = lost(future)
    assert (error.reason, "connection lost" in str(error)) == (Loss.UNREACHABLE, True)


def test_a_holder_killed_in_mid_transfer(consuming):
    program = (
        "import zmq, msgspec, signal\n"
        "from wire.bundle import pack\nfrom wire.transfer import Header\n"
        "s = zmq.Context().socket(zmq.ROUTER); s.bind('tcp://127.0.0.1:*')\n"
        "print(s.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)\n"
        "peer, _ = s.recv_multipart()\n"
        "s.send_multipart([peer, msgspec.msgpack.encode(Header(transfer=1)), pack({'x': b'y' * 99}).header])\n"
        "s.recv_multipart(); print('pulled', flush=True); signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            future = consuming().fetch(InputRef(handle=HANDLE, endpoint=process.stdout.readline().strip()), WAIT)
            assert process.stdout.readline() == "pulled\n"
        finally:
            os.kill(process.pid, signal.SIGKILL)
        assert lost(future).reason is Loss.UNREACHABLE


def test_garbage_from_a_holder_fails_its_transfers_and_a_new_connection_is_made(consuming, silent):
    router, ref = silent
    consumer = consuming()
    future = consumer.fetch(ref, WAIT)
    peer, _ = router.recv_multipart()
    router.send_multipart([peer, b"\xc1garbage"])
    assert lost(future).reason is Loss.MALFORMED

    consumer.fetch(ref, WAIT)
    assert router.recv_multipart()[0] != peer


def test_a_frame_beyond_the_limit_breaks_the_connection(consuming, silent):
    router, ref = silent
    future = consuming().fetch(ref, WAIT)
    peer, _ = router.recv_multipart()
    router.send_multipart([peer, msgspec.msgpack.encode(Header(transfer=1)), bytes(MAX_ANSWER_BYTES + 1)])
    assert lost(future).reason is Loss.UNREACHABLE


def test_a_cancelled_fetch_is_forgotten_and_what_still_arrives_is_ignored(consuming, silent):
    router, ref = silent
    consumer = consuming()
    first = consumer.fetch(ref, WAIT)
    peer, _ = router.recv_multipart()
    assert first.cancel()
    second = consumer.fetch(ref, WAIT)
    router.recv_multipart()
    empty = pack({"n": 1})
    for transfer in (1, 2):
        router.send_multipart([peer, msgspec.msgpack.encode(Chunk(transfer=1, offset=0, checksum=0)), b"late"])
        router.send_multipart([peer, msgspec.msgpack.encode(Header(transfer=transfer)), empty.header])
    assert unpack(second.result(WAIT)) == {"n": 1}
    assert first.cancelled()


def test_fetches_beyond_the_bound_are_refused_and_closing_cancels_the_rest(consuming, silent):
    _, ref = silent
    consumer = consuming()
    futures = [consumer.fetch(ref, WAIT) for _ in range(MAX_FETCHES)]
    with pytest.raises(TooManyFetches):
        consumer.fetch(ref, WAIT)
    futures[0].cancel()
    futures[0] = consumer.fetch(ref, WAIT)
    consumer.close()
    assert len(wait(futures, WAIT).done) == MAX_FETCHES
    with pytest.raises(CancelledError):
        futures[-1].result()
    with pytest.raises(RuntimeError, match="closed"):
        consumer.fetch(ref, WAIT)


def test_outputs_of_the_same_process_are_not_transferred():
    held = bundle(100)
    transport = ZmqTransport("tcp://127.0.0.1:*", {HANDLE: held}.get)
    try:
        assert transport.fetch(at(transport), WAIT).result(0) is held
    finally:
        transport.close()
        transport.close()


def test_a_port_in_use_is_named(holding):
    endpoint = holding({}.get).endpoint
    with pytest.raises(BindError, match=rf"{endpoint}.*already in use; choose another port"):
        holding({}.get, endpoint)


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*"])
def test_without_keys_only_loopback_is_bound_unless_allowed(holding, bind):
    with pytest.raises(BindError, match="allow plaintext explicitly"):
        holding({}.get, bind)
    assert not holding({}.get, bind, allow_plaintext=True).endpoint.endswith("*")


def test_a_bind_address_that_is_none(holding):
    with pytest.raises(BindError, match=r"cannot be bound to tcp://127\.0\.0\.1:nonsense"):
        holding({}.get, "tcp://127.0.0.1:nonsense")


def test_unreadable_requests_are_counted_and_the_next_one_is_served(holding, raw_socket):
    holder = holding({HANDLE: bundle(9)}.get)
    dealer = raw_socket(zmq.DEALER)
    dealer.connect(holder.endpoint)
    for frames in ([b"garbage"], [b""], [b"two", b"frames"]):
        dealer.send_multipart(frames)
    dealer.send_multipart(Fetch(HANDLE, 1).request())
    assert len(dealer.recv_multipart()) == 2
    assert holder.statistics.unreadable == 3


def test_an_oversized_request_costs_its_sender_the_connection(holding, raw_socket):
    holder = holding({HANDLE: bundle(9)}.get)
    rude = raw_socket(zmq.DEALER)
    monitor = rude.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    rude.connect(holder.endpoint)
    rude.send(bytes(1 << 20))
    assert monitor.poll(10_000)
    rude.disable_monitor()


def test_connections_beyond_the_bound_are_turned_away_until_one_goes(holding, consuming):
    holder = holding({HANDLE: bundle(9)}.get, max_connections=1)
    first, second = consuming(), consuming()
    assert first.fetch(at(holder), WAIT).result(WAIT)
    assert lost(second.fetch(at(holder), WAIT)).reason is Loss.UNREACHABLE
    assert holder.statistics.denied == 1
    first.close()
    assert any(second.fetch(at(holder), WAIT).exception(WAIT) is None for _ in range(1000))


def test_a_consumer_that_leaves_before_its_answer_disturbs_nobody(holding, consuming):
    left = threading.Event()

    def lookup(handle):
        assert left.wait(WAIT)
        return bundle(9)

    holder = holding(lookup)
    hasty = consuming()
    hasty.fetch(at(holder), WAIT)
    hasty.close()
    left.set()
    assert consuming().fetch(at(holder), WAIT).result(WAIT)


def test_without_descriptors_an_input_is_lost_and_the_next_one_is_not(holding, consuming):
    sent = bundle(100)
    holder, consumer = holding({HANDLE: sent}.get), consuming()
    with none_left():
        error = lost(consumer.fetch(at(holder), WAIT))
    assert error.reason is Loss.UNREACHABLE
    assert "Too many open files" in str(error)
    assert consumer.fetch(at(holder), WAIT).result(WAIT).total_bytes == sent.total_bytes
