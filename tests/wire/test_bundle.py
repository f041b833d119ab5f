from __future__ import annotations

import math
import time
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.bundle import ALIGNMENT, Bundle, Limits, pack, payload_bytes, unpack
from wire.errors import FrameTooLarge, MalformedFrame, UnsupportedValue, WireError
from wire.values import DTYPE_BYTES, Image, Tensor

SMALL = Limits(header_bytes=1 << 16, payload_bytes=1 << 16, depth=6, nodes=500)


def received(bundle: Bundle) -> Bundle:
    """As it looks at the other end: one writable buffer."""
    payload = memoryview(bytearray(bundle.view(0, bundle.nbytes)))
    return Bundle(bundle.header, bundle.nbytes, ((0, payload),) if payload.nbytes else ())


def tensor(dtype: str, *shape: int) -> Tensor:
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    return Tensor(dtype, shape, memoryview(bytes(i % 251 for i in range(nbytes))))


tensors = st.builds(
    lambda dtype, shape: tensor(dtype, *shape),
    st.sampled_from(sorted(DTYPE_BYTES)),
    st.lists(st.integers(0, 4), max_size=4),
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(max_size=200)
    | st.builds(Image, st.binary(max_size=200))
    | tensors
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(text, inner, max_size=3)
    ),
    max_leaves=12,
)
bundles = st.dictionaries(text, values, max_size=4)


@settings(max_examples=150)
@given(bundles)
def test_round_trip(named):
    bundle = pack(named)
    assert payload_bytes(bundle.header) == bundle.nbytes
    assert unpack(bundle) == named
    assert unpack(received(bundle)) == named


@settings(max_examples=60)
@given(bundles, st.data())
def test_views_cut_the_payload_anywhere(named, data):
    bundle = pack(named)
    whole = bytes(bundle.view(0, bundle.nbytes))
    start = data.draw(st.integers(0, bundle.nbytes))
    length = data.draw(st.integers(0, bundle.nbytes - start))
    assert bundle.view(start, length) == whole[start : start + length]


def test_every_dtype_crosses():
    named = {dtype: tensor(dtype, 2, 3) for dtype in DTYPE_BYTES}
    assert unpack(received(pack(named))) == named


def test_not_a_number_and_infinities_cross():
    back = unpack(pack({"nan": math.nan, "inf": -math.inf, "numpy": np.float64(0.1)}))
    assert math.isnan(back["nan"])
    assert (back["inf"], back["numpy"]) == (-math.inf, 0.1)


def test_packing_and_unpacking_copy_no_tensor():
    source = np.arange(64, dtype=np.float32)
    bundle = pack({"x": Tensor("float32", (64,), source.data)})
    source[3] = 77.0
    at_the_other_end = received(bundle)
    x = unpack(at_the_other_end)["x"]
    assert np.frombuffer(x.data, np.float32)[3] == 77.0
    np.frombuffer(x.data, np.float32)[0] = -1.0
    assert np.frombuffer(at_the_other_end.pieces[0][1], np.float32)[0] == -1.0


def test_buffers_are_aligned():
    bundle = pack({"a": b"x", "b": tensor("float32", 3), "c": tensor("float16", 0), "d": Image(b"y" * 65)})
    assert [offset for offset, _ in bundle.pieces] == [0, ALIGNMENT, 2 * ALIGNMENT]
    assert bundle.nbytes == 2 * ALIGNMENT + 65


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (object(), r"values\.x is a object"),
        ([1, {2, 3}], r"values\.x\[1\] is a set"),
        ({1: 2}, "key 1"),
        ({"k" * 300: 1}, "300 characters"),
        (2**64, "64 bits"),
        ("\ud800", "Unicode"),
        (Tensor("uint8", (2, 2), memoryview(bytes(8))[::2]), "contiguous"),
    ],
)
def test_what_cannot_cross_is_named(value, fault):
    with pytest.raises(UnsupportedValue, match=fault):
        pack({"x": value})


def test_packing_respects_the_reader_s_limits():
    loop: list[object] = []
    loop.append(loop)
    for values, fault in [
        ({"x": loop}, "deep"),
        ({"x": [None] * 501}, "500 values"),
        ({"x": bytes(1 << 17)}, r"values\.x"),
        ({"x": "y" * (1 << 17)}, "header"),
    ]:
        with pytest.raises(FrameTooLarge, match=fault):
            pack(values, SMALL)


def header(*pairs: object) -> bytes:
    return msgspec.msgpack.encode(["d", list(pairs)])


def nested(depth: int) -> object:
    node: object = None
    for _ in range(depth):
        node = ["l", [node]]
    return node


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        (header(["x", ["t", "float128", [1]]]), "float128"),
        (header(["x", ["t", "float32", [-1]]]), "negative"),
        (header(["x", ["t", "float32", [1] * 65]]), "65 dimensions"),
        (header(["x", ["t", "float32", [2**62, 2**62]]]), "limit"),
        (header(["x", ["t", "float32", [2**63 - 1] * 64]]), "limit"),
        (header(["x", ["t", "float32", [1.5]]]), "int"),
        (header(["x", ["b", math.nan]]), "int"),
        (header(["x", ["b", -1]]), "-1 bytes"),
        (header(["x", ["i", 1 << 40]]), "limit"),
        (header(["x", ["q", 1]]), "'q'"),
        (header(["x", 1], ["x", 2]), "'x' twice"),
        (header(["x" * 300, 1]), "300 characters"),
        (header(["x", nested(7)]), "deep"),
        (header(["x", nested(400)]), "deep"),
        (b"\x92\xa1d\x91\x92\xa1x" + b"\x92\xa1l\x91" * 5000 + b"\xc0", "deep"),
        (header(["x", ["l", [None] * 501]]), "500 values"),
        (header(["x", 1])[:-1], "truncated"),
        (bytes(1 << 17), "allowed"),
    ],
)
def test_hostile_headers_are_refused_before_anything_is_allocated(frame, fault):
    with pytest.raises(WireError, match=fault):
        payload_bytes(frame, SMALL)


def test_nested_counts_cannot_multiply_the_memory():
    """Each level claims as many children as bytes are left."""
    size = 1 << 20
    frame = b"\x92\xa1d\x91\x92\xa1x"
    for _ in range(300):
        frame += b"\x92\xa1l\xdd" + (size - len(frame) - 20).to_bytes(4, "big")
    frame += b"\xc0" * (size - len(frame))
    tracemalloc.start()
    with pytest.raises(MalformedFrame):
        payload_bytes(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_header_and_a_payload_that_disagree_are_refused():
    bundle = pack({"x": tensor("uint8", 10)})
    with pytest.raises(MalformedFrame, match="10 bytes of payload, there are 9"):
        unpack(Bundle(bundle.header, 9, ((0, memoryview(bytes(9))),)))


@settings(max_examples=300)
@given(st.data())
def test_flipped_header_bytes_never_do_more_than_raise(data):
    frame = bytearray(pack({"x": tensor("bfloat16", 2, 3), "y": [1, (b"a", {"z": Image(b"b")})]}).header)
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    started = time.monotonic()
    try:
        nbytes = payload_bytes(bytes(frame), SMALL)
        unpack(Bundle(bytes(frame), nbytes, ((0, memoryview(bytearray(nbytes))),)), SMALL)
    except WireError:
        pass
    assert time.monotonic() - started < 1.0
