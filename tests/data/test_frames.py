from __future__ import annotations

import ctypes
import platform
from types import SimpleNamespace

import pytest

from stage_server.data.frames import keep_frames
from wire.transfer import CHUNK_BYTES, WINDOW


@pytest.mark.parametrize(("library", "is_told"), [("glibc", True), ("", False)])
def test_only_glibc_is_told_to_keep_a_window_of_frames(
    library: str, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[int, int] = {}
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=told.__setitem__))
    keep_frames()
    assert bool(told) == is_told
    assert not is_told or (min(told.values()) > CHUNK_BYTES and max(told.values()) >= WINDOW * CHUNK_BYTES)
