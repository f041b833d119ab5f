"""Pictures without a picture: of any size, small, with a code in their first pixels and texts beside them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache

_ADLER_BASE = 65521


def blank_png(width: int, height: int, code: bytes = b"") -> bytes:
    """A black picture of one bit per pixel, whose first pixels are the bits of ``code``: ``width // 8`` bytes in each
    row, from the left, until it ends or the picture does."""
    per_row, stride = width // 8, 1 + (width + 7) // 8
    coded = [code[at : at + per_row] for at in range(0, len(code), per_row)][:height] if per_row else []
    head = b"".join(b"\0" + part.ljust(stride - 1, b"\0") for part in coded)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = _with_zeros(head, stride * (height - len(coded)))
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def inscribed(png: bytes, texts: Mapping[str, str]) -> bytes:
    """The same picture with ``texts`` in it, as tEXt chunks before its last, empty chunk."""
    end = len(png) - len(_chunk(b"IEND", b""))
    chunks = (_chunk(b"tEXt", f"{key}\0{text}".encode("latin-1")) for key, text in texts.items())
    return b"".join((png[:end], *chunks, png[end:]))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_zeros(head: bytes, zeros: int) -> bytes:
    """``head`` and so many zeros as a zlib stream. Only the head is compressed anew: every picture has another."""
    begin = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    low, high = zlib.adler32(head) & 0xFFFF, zlib.adler32(head) >> 16
    high = (high + zeros * low) % _ADLER_BASE  # what so many zeros make of the checksum
    checksum = struct.pack(">HH", high, low)
    return b"".join((b"\x78\x01", begin.compress(head), begin.flush(zlib.Z_FULL_FLUSH), _zeros(zeros), checksum))


@lru_cache(maxsize=32)
def _zeros(number: int) -> bytes:
    end = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return end.compress(bytes(number)) + end.flush()
