"""Named values as one header and one payload, and back without copying.

The header is MessagePack: the tree of values with scalars and text in place, and for each tensor, picture or byte
string only its size. Their bytes follow in the order of the tree, each at the next multiple of ``ALIGNMENT``. As the
layout follows from the sizes, a header cannot name overlapping, negative or out-of-range places, and the payload's
size is known, and checked, before anything is allocated for it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from wire.control_codec import check_size, decode
from wire.errors import FrameTooLarge, MalformedFrame, UnsupportedValue
from wire.record import record
from wire.values import DTYPE_BYTES, Image, Tensor, Value

ALIGNMENT = 64
"""Bytes: a cache line, and more than any dtype or vector unit asks for."""

MAX_NAME = 256
"""Characters of a dict's key."""

MAX_DIMENSIONS = 64
"""As in numpy and torch. Without it, a hostile shape could keep the reader multiplying for minutes."""


@record(frozen=True, slots=True)
class Limits:
    """What a reader accepts, and a writer therefore refuses to write."""

    header_bytes: int = 1 << 20
    payload_bytes: int = 1 << 30
    depth: int = 32
    nodes: int = 1 << 16


LIMITS = Limits()


@record(frozen=True, slots=True)
class Bundle:
    """Packed values: ``pieces`` are (offset, bytes) in rising order and never change; gaps between them read as 0.

    ``nbytes`` is the payload's size, padding included. A received bundle has one piece.
    """

    header: bytes
    nbytes: int
    pieces: tuple[tuple[int, memoryview], ...]

    @property
    def total_bytes(self) -> int:
        return len(self.header) + self.nbytes

    def view(self, offset: int, length: int) -> memoryview:
        """``length`` bytes of the payload from ``offset``: no copy where they lie within one piece."""
        index = bisect_right(self.pieces, offset, key=_start) - 1
        if index >= 0:
            start, data = self.pieces[index]
            if offset + length <= start + data.nbytes:
                return data[offset - start : offset - start + length]
        return self._joined(max(index, 0), offset, length)

    def _joined(self, index: int, offset: int, length: int) -> memoryview:
        joined = memoryview(bytearray(length))
        for start, data in self.pieces[index:]:
            if start >= offset + length:
                break
            first, last = max(offset, start), min(offset + length, start + data.nbytes)
            if first < last:
                joined[first - offset : last - offset] = data[first - start : last - start]
        return joined


class _Node(msgspec.Struct, frozen=True, array_like=True):
    """Base of what the header holds for a value that MessagePack has no type of its own for."""


class _TensorNode(_Node, frozen=True, tag="t"):
    dtype: str
    shape: tuple[int, ...]


class _ImageNode(_Node, frozen=True, tag="i"):
    nbytes: int


class _BytesNode(_Node, frozen=True, tag="b"):
    nbytes: int


class _ListNode(_Node, frozen=True, tag="l"):
    items: tuple[_Any, ...]


class _TupleNode(_Node, frozen=True, tag="u"):
    items: tuple[_Any, ...]


class _DictNode(_Node, frozen=True, tag="d"):
    """Pairs rather than a map: a decoder of maps would hide duplicate names."""

    items: tuple[tuple[str, _Any], ...]


_Any = None | bool | int | float | str | _TensorNode | _ImageNode | _BytesNode | _ListNode | _TupleNode | _DictNode

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_DictNode)


def pack(values: Mapping[str, Value], limits: Limits = LIMITS) -> Bundle:
    """Describe ``values``; their buffers are referenced, not copied, and must not change from here on.

    Raises ``UnsupportedValue`` for a type that cannot cross and ``FrameTooLarge`` beyond ``limits``.
    """
    packer = _Packer(limits)
    root = packer.mapping(values, "values", limits.depth)
    try:
        header = _encoder.encode(root)
    except OverflowError as error:
        raise UnsupportedValue("an integer does not fit 64 bits") from error
    except UnicodeEncodeError as error:
        raise UnsupportedValue(f"text that is not valid Unicode: {error.reason}") from error
    check_size(header, limits.header_bytes, "bundle header")
    return Bundle(header, packer.offset, tuple(packer.pieces))


def payload_bytes(header: bytes, limits: Limits = LIMITS) -> int:
    """Size of the payload that ``header`` describes. Raises ``MalformedFrame`` or ``FrameTooLarge``."""
    return _measure(_read(header, limits), limits)


def unpack(bundle: Bundle, limits: Limits = LIMITS) -> dict[str, Value]:
    """The values; tensors are views into the bundle's pieces, writable where those are.

    Raises ``MalformedFrame`` where header and payload disagree and ``FrameTooLarge`` beyond ``limits``.
    """
    root = _read(bundle.header, limits)
    expected = _measure(root, limits)
    if bundle.nbytes != expected:
        raise MalformedFrame(f"the bundle's header describes {expected} bytes of payload, there are {bundle.nbytes}")
    return _Unpacker(bundle).mapping(root)


def _start(piece: tuple[int, memoryview]) -> int:
    return piece[0]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


class _Packer:
    """Walks the values in order, laying out their buffers."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._nodes = 0
        self.offset = 0
        self.pieces: list[tuple[int, memoryview]] = []

    def mapping(self, values: Mapping[str, Value], path: str, depth: int) -> _DictNode:
        pairs = []
        for name, value in values.items():
            if not isinstance(name, str):
                raise UnsupportedValue(f"{path} has the key {name!r}; keys must be strings")
            if len(name) > MAX_NAME:
                raise UnsupportedValue(f"{path} has a key of {len(name)} characters, at most {MAX_NAME} can cross")
            pairs.append((name, self._node(value, f"{path}.{name}", depth - 1)))
        return _DictNode(tuple(pairs))

    def _node(self, value: Value, path: str, depth: int) -> _Any:
        self._count(path, depth)
        match value:
            case None | bool() | str():
                return value
            case int():
                return int(value)
            case float():
                return float(value)  # numpy's float64 is a float to Python, not to msgspec
            case Tensor(dtype, shape, data):
                self._lay(data, path)
                return _TensorNode(dtype, shape)
            case Image(png):
                return _ImageNode(self._lay(png, path))
            case bytes():
                return _BytesNode(self._lay(value, path))
            case list():
                return _ListNode(self._items(value, path, depth))
            case tuple():
                return _TupleNode(self._items(value, path, depth))
            case dict():
                return self.mapping(value, path, depth)
        raise UnsupportedValue(
            f"{path} is a {type(value).__name__}; tensors, images, scalars, text, bytes and lists, tuples and "
            "dicts of them can cross between stages"
        )

    def _items(self, values: list[Value] | tuple[Value, ...], path: str, depth: int) -> tuple[_Any, ...]:
        return tuple(self._node(value, f"{path}[{index}]", depth - 1) for index, value in enumerate(values))

    def _count(self, path: str, depth: int) -> None:
        self._nodes += 1
        if self._nodes > self._limits.nodes:
            raise FrameTooLarge(f"{path}: more than {self._limits.nodes} values in one bundle")
        if depth < 0:
            raise FrameTooLarge(f"{path}: nested more than {self._limits.depth} deep")

    def _lay(self, data: bytes | memoryview, path: str) -> int:
        view = memoryview(data)
        if not view.c_contiguous:
            raise UnsupportedValue(f"{path}: the buffer is not contiguous in C order")
        if view.nbytes:
            self.offset = _aligned(self.offset)
            self.pieces.append((self.offset, np.frombuffer(view, np.uint8).data))
            self.offset += view.nbytes
        if self.offset > self._limits.payload_bytes:
            raise FrameTooLarge(f"{path}: the bundle exceeds {self._limits.payload_bytes} bytes")
        return view.nbytes


def _read(header: bytes, limits: Limits) -> _DictNode:
    return decode(_decoder.decode, header, limits.header_bytes, "bundle header")


def _measure(root: _DictNode, limits: Limits) -> int:
    """Check the whole tree; the size of its payload."""
    offset = 0
    for count, (path, node, depth) in enumerate(_walk(root, "values", 0), start=1):
        if depth > limits.depth:
            raise MalformedFrame(f"bundle header: {path} is nested more than {limits.depth} deep")
        if count > limits.nodes:
            raise FrameTooLarge(f"bundle header: more than {limits.nodes} values")
        nbytes = _leaf_bytes(node, path)
        if nbytes:
            offset = _aligned(offset) + nbytes
        if offset > limits.payload_bytes:
            raise FrameTooLarge(f"bundle header: {path} ends at byte {offset}, the limit is {limits.payload_bytes}")
    return offset


def _walk(node: _Any, path: str, depth: int) -> Iterator[tuple[str, _Any, int]]:
    if depth:
        yield path, node, depth
    match node:
        case _DictNode(items):
            names = set()
            for name, value in items:
                if len(name) > MAX_NAME:
                    raise MalformedFrame(f"bundle header: {path} has a name of {len(name)} characters")
                if name in names:
                    raise MalformedFrame(f"bundle header: {path} has the name {name!r} twice")
                names.add(name)
                yield from _walk(value, f"{path}.{name}", depth + 1)
        case _ListNode(values) | _TupleNode(values):
            for index, value in enumerate(values):
                yield from _walk(value, f"{path}[{index}]", depth + 1)


def _leaf_bytes(node: _Any, path: str) -> int:
    match node:
        case _TensorNode(dtype, shape):
            if dtype not in DTYPE_BYTES:
                raise MalformedFrame(f"bundle header: {path} has the unknown dtype {dtype[:MAX_NAME]!r}")
            if len(shape) > MAX_DIMENSIONS:
                raise MalformedFrame(f"bundle header: {path} has {len(shape)} dimensions, at most {MAX_DIMENSIONS}")
            if any(extent < 0 for extent in shape):
                raise MalformedFrame(f"bundle header: {path} has the shape {shape} with a negative extent")
            return math.prod(shape) * DTYPE_BYTES[dtype]
        case _ImageNode(nbytes) | _BytesNode(nbytes):
            if nbytes < 0:
                raise MalformedFrame(f"bundle header: {path} has {nbytes} bytes")
            return nbytes
    return 0


class _Unpacker:
    """Builds the values of a tree that ``_measure`` has accepted."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._offset = 0

    def mapping(self, node: _DictNode) -> dict[str, Value]:
        return {name: self._value(value) for name, value in node.items}

    def _value(self, node: _Any) -> Value:
        match node:
            case _TensorNode(dtype, shape):
                return Tensor(dtype, shape, self._take(_leaf_bytes(node, "")))
            case _ImageNode(nbytes):
                return Image(bytes(self._take(nbytes)))
            case _BytesNode(nbytes):
                return bytes(self._take(nbytes))
            case _ListNode(values):
                return [self._value(value) for value in values]
            case _TupleNode(values):
                return tuple(self._value(value) for value in values)
            case _DictNode():
                return self.mapping(node)
            case _:
                return node

    def _take(self, nbytes: int) -> memoryview:
        if nbytes == 0:
            return memoryview(b"")
        start = _aligned(self._offset)
        self._offset = start + nbytes
        return self._bundle.view(start, nbytes)
