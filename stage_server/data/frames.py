"""Memory for ZeroMQ's frames: the C library keeps it, instead of mapping fresh pages for each chunk."""

from __future__ import annotations

import ctypes
import platform

from wire.transfer import CHUNK_BYTES, WINDOW

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Parameters of glibc's ``mallopt``; other C libraries have no such function."""


def keep_frames() -> None:
    """Blocks of a chunk's size come from the heap, and four windows of them stay there when they are free.

    For the whole process, and only with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, 2 * CHUNK_BYTES)
    library.mallopt(_M_TRIM_THRESHOLD, 4 * WINDOW * CHUNK_BYTES)
