"""Records of use on their way to the database, in a file as well: a process that is killed leaves them to the next one.

A record goes to the kernel with one call, as its request ends, and to the disk when the kernel likes: a machine that
loses power may lose the last seconds, ``kill -9`` loses nothing that is here.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.database.usage import UsageRecord
from gateway.metering.overflow import Overflow
from gateway.storage.locks import lock

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
MOST_BYTES = 16 << 20
"""Of records that are safe elsewhere for the most part: more than memory holds of those that are not."""

log = logging.getLogger(__name__)


class Journal:
    """No method raises: requests go on without it, and the log says so."""

    def __init__(self, path: Path, heir: Overflow) -> None:
        """What a process that was killed left in ``path`` goes to ``heir``, which is replayed.

        A process that lives has locked it: of two that share a folder, the later one goes without.
        """
        self.path = path
        self._encoder = msgspec.json.Encoder()
        self._file: int | None = None
        self._nbytes = 0
        self._fails = False
        file = None
        try:
            file = _opened(path, _FLAGS)
            heir.take_over(path)
            os.ftruncate(file, 0)
            self._file = file
        except OSError as error:
            if file is not None:
                os.close(file)
            is_locked = isinstance(error, BlockingIOError)
            self._complain("another gateway uses this state folder" if is_locked else error.strerror)

    def note(self, record: UsageRecord) -> None:
        """Some 2 µs: the call only copies the line."""
        if self._file is None:
            return
        line = self._encoder.encode(record) + b"\n"
        try:
            _write(self._file, line)
            self._nbytes += len(line)
        except OSError as error:
            self._complain(error.strerror)
            with suppress(OSError):  # half a line would spoil the next one, too
                os.ftruncate(self._file, self._nbytes)

    def shorten(self, records: Iterable[UsageRecord]) -> None:
        """All that was noted is safe elsewhere, but for ``records``. Done where it is long: a file that is never empty
        at the right moment, as under load while the database is away, would grow for ever."""
        if self._file is None or self._nbytes <= MOST_BYTES:
            return
        text = b"".join(self._encoder.encode(record) + b"\n" for record in records)
        new, file = self.path.with_suffix(".new"), None
        try:
            file = _opened(new, _FLAGS | os.O_TRUNC)
            _write(file, text)
            new.replace(self.path)  # at once: there is no moment at which a record is nowhere
        except OSError as error:
            if file is not None:
                os.close(file)
            self._complain(error.strerror)
            return
        os.close(self._file)
        self._file, self._nbytes = file, len(text)

    def clear(self) -> None:
        """All that was noted is safe elsewhere."""
        self._fails = False
        if self._file is None or not self._nbytes:
            return
        try:
            os.ftruncate(self._file, 0)
        except OSError as error:
            self._complain(error.strerror)
        else:
            self._nbytes = 0

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _complain(self, reason: str | None) -> None:
        """Once, until records have been written to the database again."""
        if not self._fails:
            log.warning("%s: %s; what was used in the last second is lost if the gateway is killed", self.path, reason)
        self._fails = True


def _write(file: int, text: bytes) -> None:
    """All of it. Raises ``OSError``."""
    if os.write(file, text) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _opened(path: Path, flags: int) -> int:
    """Locked until it is closed. Raises ``OSError``: ``BlockingIOError`` where another process has locked it."""
    file = os.open(path, flags, 0o600)
    try:
        lock(file, waits=False)
    except OSError:
        os.close(file)
        raise
    return file
