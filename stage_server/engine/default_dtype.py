"""Loading beside running jobs: the libraries change torch's default dtype for all threads while they build a module.

A job that made a float tensor in such a moment would make it in half precision. So a thread that loads beside jobs
takes the device for these moments, a fraction of a second per module; reading the weights, which takes the time, is not
among them. In float32, which is the default, there are none.

They also put functions of their own in place of torch's and take them back afterwards. Of two threads that do so at
once the later one takes back the other's, and every module made from then on has no weights. So one is read at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from stage_server.engine.base import DeviceTurn

_set_default_dtype = torch.set_default_dtype
_reading = threading.Lock()
_here = threading.local()


class _Guard:
    def __init__(self, turn: DeviceTurn) -> None:
        self._turn = turn
        self._usual = torch.get_default_dtype()
        self._held: ExitStack | None = None

    def change(self, dtype: torch.dtype) -> None:
        if dtype is not self._usual and self._held is None:
            self._held = ExitStack()
            self._held.enter_context(self._turn())
        _set_default_dtype(dtype)
        if dtype is self._usual:
            self._give_back()

    def end(self) -> None:
        """diffusers leaves its dtype behind where a constructor raises."""
        if self._held is not None:
            _set_default_dtype(self._usual)
            self._give_back()

    def _give_back(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()


@contextmanager
def guarded(turn: DeviceTurn) -> Iterator[None]:
    """In this thread, while torch's default dtype is another than before, ``turn`` is taken.

    Waits for other threads that are here, which may wait for a turn: not to be called with one.
    """
    with _reading:
        _here.guard = guard = _Guard(turn)
        try:
            yield
        finally:
            _here.guard = None
            guard.end()


def _watched(dtype: torch.dtype) -> None:
    guard: _Guard | None = getattr(_here, "guard", None)
    if guard is None:
        _set_default_dtype(dtype)
    else:
        guard.change(dtype)


torch.set_default_dtype = _watched
