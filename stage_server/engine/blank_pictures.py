"""Pictures without a picture: of any size, small, and with texts in them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache


@lru_cache(maxsize=32)
def blank_png(width: int, height: int) -> bytes:
    """A black picture of one bit per pixel."""
    rows = bytes((1 + (width + 7) // 8) * height)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def inscribed(png: bytes, texts: Mapping[str, str]) -> bytes:
    """The same picture with ``texts`` in it, as tEXt chunks before its last, empty chunk."""
    end = len(png) - len(_chunk(b"IEND", b""))
    chunks = (_chunk(b"tEXt", f"{key}\0{text}".encode("latin-1")) for key, text in texts.items())
    return b"".join((png[:end], *chunks, png[end:]))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
