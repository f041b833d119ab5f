from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.bundle import Limits, pack, unpack
from wire.errors import InputLost, Loss, MalformedFrame, WireError
from wire.transfer import MAX_CHUNK_BYTES, Chunk, Fetch, Get, Header, Missing, Pull, State, decode_answer, serve
from wire.types import Handle
from wire.values import Tensor
from wire.version import PROTOCOL

HANDLE = Handle("ab" * 16)
VALUES = {"a": Tensor("uint8", (150,), memoryview(bytes(range(150)))), "b": b"x" * 70, "steps": 4}
BUNDLE = pack(VALUES)
CHUNK = 64
CHUNKS = -(-BUNDLE.nbytes // CHUNK)


def lookup(handle):
    return BUNDLE if handle == HANDLE else None


def offered(**options) -> Fetch:
    fetch = Fetch(HANDLE, 7, chunk_bytes=CHUNK, **options)
    assert fetch.feed(*decode_answer(serve(fetch.request(), lookup))) == []
    assert fetch.state is State.OFFERED
    return fetch


def answers(requests):
    return [decode_answer(serve(request, lookup)) for request in requests]


def pulling(window: int = 4):
    fetch = offered(window=window)
    return fetch, answers(fetch.accept(memoryview(bytearray(fetch.nbytes))))


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_chunks_in_any_order_with_copies_and_one_damage_each_give_the_bundle(random, window):
    fetch, inbox = pulling(window)
    damaged = set()
    while fetch.state is not State.COMPLETE:
        assert len({chunk.offset for chunk, _ in inbox}) <= window
        chunk, body = inbox.pop(random.randrange(len(inbox)))
        if random.random() < 0.3 and chunk.offset not in damaged:
            damaged.add(chunk.offset)
            body = bytes([body[0] ^ 1]) + bytes(body[1:])
        inbox += answers(fetch.feed(chunk, body))
        if random.random() < 0.3 and chunk.offset not in damaged:
            assert fetch.feed(chunk, body) == []
    assert unpack(fetch.bundle) == VALUES
    assert all(fetch.feed(chunk, body) == [] for chunk, body in inbox)


def test_no_more_chunks_are_asked_for_than_the_window_has():
    fetch, inbox = pulling(window=2)
    assert len(inbox) == 2
    assert len(fetch.feed(*inbox[0])) == 1


def test_a_bundle_without_payload_needs_no_chunk():
    empty = pack({"height": 64})
    fetch = Fetch(HANDLE, 1)
    fetch.feed(*decode_answer(serve(fetch.request(), lambda _: empty)))
    assert fetch.accept(memoryview(bytearray())) == []
    assert unpack(fetch.bundle) == {"height": 64}


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        (Loss.MALFORMED, lambda chunk, body: (chunk, bytes(body[:-1]))),
        (Loss.MALFORMED, lambda chunk, body: (chunk, bytes(body) + b"x")),
        (Loss.MALFORMED, lambda chunk, body: (Chunk(transfer=7, offset=1, checksum=0), body)),
        (Loss.MALFORMED, lambda chunk, body: (Chunk(transfer=7, offset=CHUNK * 1000, checksum=0), body)),
        (Loss.MALFORMED, lambda chunk, body: (Chunk(transfer=7, offset=-CHUNK, checksum=0), body)),
        (Loss.MISSING, lambda chunk, body: (Missing(transfer=7), b"")),
    ],
)
def test_a_wrong_chunk_ends_the_transfer(reason, damage):
    fetch, inbox = pulling()
    with pytest.raises(InputLost) as caught:
        fetch.feed(*damage(*inbox[0]))
    assert (caught.value.handle, caught.value.reason) == (HANDLE, reason)


def test_a_chunk_that_arrives_damaged_twice_ends_the_transfer():
    fetch, ((chunk, body), *_) = pulling()
    bad = bytes(len(body))[:-1] + b"\xff"
    again = fetch.feed(chunk, bad)
    assert [msgspec.msgpack.decode(request[0], type=Pull).offset for request in again] == [chunk.offset]
    with pytest.raises(InputLost, match="twice"):
        fetch.feed(chunk, bad)


def test_answers_to_other_transfers_are_ignored():
    fetch, _ = pulling()
    assert fetch.feed(Missing(transfer=6), b"") == []
    assert fetch.state is State.PULLING


def test_a_chunk_before_the_header_is_refused():
    with pytest.raises(InputLost, match="not asked for"):
        Fetch(HANDLE, 7).feed(Chunk(transfer=7, offset=0, checksum=0), b"")


@pytest.mark.parametrize(
    ("limits", "header", "reason"),
    [
        (Limits(payload_bytes=100), BUNDLE.header, Loss.TOO_LARGE),
        (Limits(header_bytes=10), BUNDLE.header, Loss.TOO_LARGE),
        (Limits(), b"garbage", Loss.MALFORMED),
    ],
)
def test_a_header_is_checked_before_space_is_asked_for(limits, header, reason):
    fetch = Fetch(HANDLE, 7, limits=limits)
    with pytest.raises(InputLost) as caught:
        fetch.feed(Header(transfer=7), header)
    assert (caught.value.reason, fetch.nbytes) == (reason, 0)


@pytest.mark.parametrize("payload", [memoryview(bytearray(5)), memoryview(bytes(BUNDLE.nbytes))])
def test_a_payload_buffer_that_does_not_fit_is_refused(payload):
    with pytest.raises(ValueError, match=f"{BUNDLE.nbytes} writable"):
        offered().accept(payload)


def test_misuse_is_refused():
    with pytest.raises(RuntimeError, match="ASKED"):
        Fetch(HANDLE, 7).accept(memoryview(b""))
    with pytest.raises(RuntimeError, match="OFFERED"):
        _ = offered().bundle


def ask(request) -> object:
    return decode_answer(serve([msgspec.msgpack.encode(request)], lookup))[0]


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 4), (0, 0), (0, -1), (0, MAX_CHUNK_BYTES + 1), (BUNDLE.nbytes, 1), (2**62, 2**62)]
)
def test_a_holder_refuses_to_cut_outside_the_payload(offset, length):
    answer = ask(Pull(transfer=1, handle=HANDLE, offset=offset, length=length))
    assert type(answer).__name__ == "Refused"


def test_a_holder_refuses_another_major_version():
    answer = ask(Get(transfer=1, handle=HANDLE, protocol=(PROTOCOL[0] + 1, 0)))
    with pytest.raises(InputLost, match="major versions must be equal") as caught:
        Fetch(HANDLE, 1).feed(answer, b"")
    assert caught.value.reason is Loss.REFUSED


def test_a_holder_without_the_handle_says_so():
    fetch = Fetch(Handle("00"), 1)
    with pytest.raises(InputLost) as caught:
        fetch.feed(*decode_answer(serve(fetch.request(), lookup)))
    assert caught.value.reason is Loss.MISSING


@pytest.mark.parametrize("frames", [[], [b""], [b"\x80"], [b"x", b"y"], [bytes(5000)], [b"a", b"b", b"c"]])
def test_unreadable_messages_raise(frames):
    with pytest.raises(WireError):
        serve(frames, lookup)
    with pytest.raises(WireError):
        decode_answer(frames)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_never_do_more_than_raise(data):
    def flipped(frame):
        frame = bytearray(frame)
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        return bytes(frame)

    fetch = Fetch(HANDLE, 7, limits=Limits(payload_bytes=1 << 16))
    try:
        for frame in (
            flipped(fetch.request()[0]),
            msgspec.msgpack.encode(Pull(transfer=7, handle=HANDLE, offset=0, length=9)),
        ):
            fetch.feed(*decode_answer([flipped(part) for part in serve([frame], lookup)]))
            if fetch.state is State.OFFERED:
                fetch.accept(memoryview(bytearray(fetch.nbytes)))
    except (MalformedFrame, WireError, InputLost):
        pass
