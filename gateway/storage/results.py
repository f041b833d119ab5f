"""Finished pictures that clients fetch by url: on disk, bounded in bytes and age, gone with the process."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Entry:
    nbytes: int
    expires: float


class ResultStore:
    """Pictures by unguessable name. The oldest go when room is needed; the newest is always kept.

    The folder of this process is made on first use, below ``directory`` or the system's temporary one.
    """

    def __init__(
        self,
        *,
        directory: Path | None,
        max_bytes: int,
        max_age_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parent = directory
        self._max_bytes = max_bytes
        self._max_age = max_age_seconds
        self._clock = clock
        self._folder: Path | None = None
        self._entries: dict[str, _Entry] = {}  # oldest first
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes stored now."""
        return self._nbytes

    async def put(self, image: bytes, extension: str) -> str:
        """Store ``image`` and return its name, which ends in ``.extension``. Raises ``OSError``."""
        name = f"img_{secrets.token_hex(16)}.{extension}"
        folder = self._own_folder()
        doomed = self._make_room(len(image))
        # Before the file is there: whoever stores at the same time must count its bytes. Nobody can ask for it yet,
        # since the name is told only when this returns.
        self._entries[name] = _Entry(len(image), self._clock() + self._max_age)
        self._nbytes += len(image)
        try:
            await asyncio.to_thread(_replace, folder, doomed, name, image)
        except OSError:
            self._forget(name)
            raise
        return name

    async def get(self, name: str) -> bytes | None:
        """The picture of that name, or None when it has expired or never was."""
        entry = self._entries.get(name)
        if entry is None or self._folder is None or entry.expires <= self._clock():
            return None
        try:
            return await asyncio.to_thread((self._folder / name).read_bytes)
        except FileNotFoundError:  # evicted meanwhile
            return None

    def close(self) -> None:
        """Delete everything."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        self._entries.clear()
        self._nbytes = 0

    def _make_room(self, nbytes: int) -> list[str]:
        """Forget what has expired and, oldest first, what is in the way; return the names."""
        now = self._clock()
        doomed = []
        while self._entries:
            name, entry = next(iter(self._entries.items()))
            if entry.expires > now and self._nbytes + nbytes <= self._max_bytes:
                break
            self._forget(name)
            doomed.append(name)
        return doomed

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        self._nbytes -= entry.nbytes if entry else 0

    def _own_folder(self) -> Path:
        if self._folder is None:
            if self._parent is not None:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="disagfusion-results-", dir=self._parent))
        return self._folder


def _replace(folder: Path, doomed: list[str], name: str, image: bytes) -> None:
    """On a worker thread."""
    for old in doomed:  # before the new one, or the disk would hold more than ``max_bytes`` for a moment
        (folder / old).unlink(missing_ok=True)
    (folder / name).write_bytes(image)
