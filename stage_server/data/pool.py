"""Host buffers that are used again once nothing refers to them: mapping fresh pages costs more than a transfer."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from wire.bundle import ALIGNMENT

Bytes = npt.NDArray[np.uint8]

SMALLEST = 64 << 10
IDLE_BYTES = 128 << 20
"""Kept idle per power of two; larger buffers are not kept."""


def pageable(nbytes: int) -> Bytes:
    """Ordinary memory at a multiple of ``ALIGNMENT``."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


class BufferPool:
    """Callable as the consumer's ``Allocate``; ``make`` may give pinned memory instead.

    A buffer comes back when the memoryview and everything made from it (slices, arrays, tensors) are gone, so nobody
    has to say so and none is ever shared. No lock: the garbage collector may bring one back at any moment, even here.
    """

    def __init__(self, make: Callable[[int], Bytes] = pageable, *, idle_bytes: int = IDLE_BYTES) -> None:
        self._make = make
        self._idle_bytes = idle_bytes
        self._idle: dict[int, deque[Bytes]] = {}

    def __call__(self, nbytes: int) -> memoryview:
        """Writable, of exactly ``nbytes``, with arbitrary contents."""
        capacity = max(SMALLEST, 1 << max(nbytes - 1, 0).bit_length())
        idle = self._idle.setdefault(capacity, deque(maxlen=self._idle_bytes // capacity))
        try:
            whole = idle.pop()
        except IndexError:
            whole = self._make(capacity)
        lease = whole[:nbytes]
        weakref.finalize(lease, idle.append, whole).atexit = False
        return lease.data
