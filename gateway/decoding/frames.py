"""What goes between the gateway and a process that decodes: a head as JSON, then the bytes that it tells of."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

_LENGTHS = struct.Struct(">IQ")

MAX_HEAD_BYTES = 64 << 10


def send(to: socket.socket, head: Mapping[str, object], *pieces: bytes) -> None:
    """Raises ``OSError``; ``TimeoutError`` is one."""
    text = json.dumps({**head, "pieces": [len(piece) for piece in pieces]}).encode()
    to.sendall(_LENGTHS.pack(len(text), sum(map(len, pieces))) + text)
    for piece in pieces:
        to.sendall(piece)


def receive(origin: socket.socket, max_bytes: int) -> tuple[dict[str, Any], Sequence[bytes]]:
    """Raises ``EOFError`` where the other end is gone, ``OSError``, or ``ValueError`` for what no honest end sends."""
    head_bytes, nbytes = _LENGTHS.unpack(_exactly(origin, _LENGTHS.size))
    if head_bytes > MAX_HEAD_BYTES or nbytes > max_bytes:
        raise ValueError(f"{head_bytes} + {nbytes} bytes are announced, {MAX_HEAD_BYTES} + {max_bytes} are allowed")
    head = json.loads(_exactly(origin, head_bytes))
    lengths = head.pop("pieces")
    if sum(lengths) != nbytes:
        raise ValueError(f"pieces of {lengths} bytes do not make {nbytes}")
    return head, [bytes(_exactly(origin, length)) for length in lengths]


def _exactly(origin: socket.socket, nbytes: int) -> bytearray:
    buffer = bytearray(nbytes)
    view, filled = memoryview(buffer), 0
    while filled < nbytes:
        count = origin.recv_into(view[filled:])
        if not count:
            raise EOFError("the other end is gone")
        filled += count
    return buffer
