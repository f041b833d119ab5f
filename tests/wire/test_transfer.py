from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.bundle import Limits, pack, unpack
from wire.errors import InputLost, Loss, MalformedFrame, WireError
from wire.transfer import (
    MAX_AHEAD,
    MAX_CHUNK_BYTES,
    MAX_OPENING_HEADER,
    Chunk,
    Fetch,
    Get,
    Header,
    Missing,
    Opening,
    Pull,
    State,
    decode_answer,
    serve,
)
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


def answers(requests, lookup=lookup):
    return [decode_answer(answer) for request in requests for answer in serve(request, lookup)]


def offered(**options) -> Fetch:
    """By a holder that sends nothing unasked, as those before ``Opening`` do."""
    fetch = Fetch(HANDLE, 7, chunk_bytes=CHUNK, **options)
    assert fetch.feed(Header(transfer=7), BUNDLE.header) == []
    assert fetch.state is State.OFFERED
    return fetch


def pulling(window: int = 4):
    fetch = offered(window=window)
    return fetch, answers(fetch.accept(memoryview(bytearray(fetch.nbytes))))


def opened(**options):
    """The fetch, and what came unasked and was not fed yet."""
    fetch = Fetch(HANDLE, 7, chunk_bytes=CHUNK, **options)
    opening, *inbox = answers([fetch.request()])
    assert fetch.feed(*opening) == []
    return fetch, inbox


def accepted(fetch):
    return answers(fetch.accept(memoryview(bytearray(fetch.nbytes))))


@settings(max_examples=100)
@given(st.randoms(use_true_random=False), st.integers(1, 8), st.booleans())
def test_chunks_in_any_order_with_copies_and_one_damage_each_give_the_bundle(random, window, unasked):
    if unasked:
        fetch, inbox = opened(window=window)
        inbox += accepted(fetch)
    else:
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
    (answer,) = answers([fetch.request()], lambda _: empty)
    fetch.feed(*answer)
    assert fetch.accept(memoryview(bytearray())) == []
    assert unpack(fetch.bundle) == {"height": 64}


def test_a_small_bundle_comes_whole_with_one_answer():
    fetch = Fetch(HANDLE, 7)
    ((opening, body),) = answers([fetch.request()])
    assert fetch.feed(opening, body) == []
    assert accepted(fetch) == []
    assert unpack(fetch.bundle) == VALUES


def test_as_many_chunks_as_the_window_has_come_unasked_and_no_more():
    fetch, inbox = opened(window=2)
    assert [chunk.offset for chunk, _ in inbox] == [CHUNK]
    assert [chunk.offset for chunk, _ in accepted(fetch)] == [2 * CHUNK]


def test_the_chunk_that_came_with_the_header_is_pulled_again_if_it_was_damaged():
    fetch = Fetch(HANDLE, 7)
    ((opening, body),) = answers([fetch.request()])
    fetch.feed(opening, bytes(len(body)))
    for answer in accepted(fetch):
        fetch.feed(*answer)
    assert unpack(fetch.bundle) == VALUES


@pytest.mark.parametrize("ahead", [0, -CHUNK, 1, CHUNK + 1, 3 * CHUNK, BUNDLE.nbytes + 1])
def test_a_holder_that_sends_other_chunks_unasked_than_it_may_is_refused(ahead):
    fetch = Fetch(HANDLE, 7, chunk_bytes=CHUNK, window=2)
    with pytest.raises(InputLost) as caught:
        fetch.feed(Opening(transfer=7, header=BUNDLE.header, ahead=ahead, checksum=0), b"")
    assert caught.value.reason is Loss.MALFORMED


@pytest.mark.parametrize(("chunk", "ahead"), [(0, 8), (-1, 8), (MAX_CHUNK_BYTES + 1, 1), (CHUNK, 0), (CHUNK, -1)])
def test_a_holder_sends_nothing_unasked_in_chunks_of_no_size(chunk, ahead):
    get = Get(transfer=1, handle=HANDLE, protocol=PROTOCOL, chunk=chunk, ahead=ahead)
    ((answer, header),) = answers([[msgspec.msgpack.encode(get)]])
    assert isinstance(answer, Header)
    assert header == BUNDLE.header


def test_a_holder_sends_no_more_unasked_than_the_limit():
    large = pack({"a": bytes(100)})
    get = Get(transfer=1, handle=HANDLE, protocol=PROTOCOL, chunk=2, ahead=2**40)
    (opening, _), *chunks = answers([[msgspec.msgpack.encode(get)]], lambda _: large)
    assert (opening.ahead, 1 + len(chunks)) == (2 * MAX_AHEAD, MAX_AHEAD)


def test_a_header_too_large_for_a_control_frame_comes_by_itself():
    wordy = pack({"text": "x" * MAX_OPENING_HEADER, "a": b"y"})
    fetch = Fetch(HANDLE, 7)
    inbox = answers([fetch.request()], lambda _: wordy)
    while inbox:
        requests = fetch.feed(*inbox.pop())
        if fetch.state is State.OFFERED:
            requests += fetch.accept(memoryview(bytearray(fetch.nbytes)))
        inbox += answers(requests, lambda _: wordy)
    assert unpack(fetch.bundle)["a"] == b"y"


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
    ((answer, _),) = answers([[msgspec.msgpack.encode(request)]])
    return answer


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
        fetch.feed(*answers([fetch.request()])[0])
    assert caught.value.reason is Loss.MISSING


@pytest.mark.parametrize("frames", [[], [b""], [b"\x80"], [b"x", b"y"], [bytes(5000)], [b"a", b"b", b"c"]])
def test_unreadable_messages_raise(frames):
    with pytest.raises(WireError):
        serve(frames, lookup)
    with pytest.raises(WireError):
        decode_answer(frames)


@settings(max_examples=300)
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
            for answer in serve([frame], lookup):
                fetch.feed(*decode_answer([flipped(part) for part in answer]))
                if fetch.state is State.OFFERED:
                    fetch.accept(memoryview(bytearray(fetch.nbytes)))
    except (MalformedFrame, WireError, InputLost):
        pass
