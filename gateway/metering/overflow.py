"""A bounded file for records of use while the database is away. One record a line.

Two gateways may share it, by mistake or for a moment: each locks it to add or to delete, and what both have read is
written once, since a record has an id.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from gateway.database.usage import UsageRecord
from gateway.storage import locks

log = logging.getLogger(__name__)


class Overflow:
    """Every method may block for a disk's time, and raise ``OSError``."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._read_bytes = 0

    def exists(self) -> bool:
        return self.path.exists()

    def append(self, records: Sequence[UsageRecord]) -> int:
        """How many of the first ``records`` it took: not all when it is full."""
        with _locked(self.path) as file:
            room, begin, taken = self._max_bytes - file.tell(), file.tell(), 0
            lines = [_ending_the_last(file)]
            for record in records:
                lines.append(msgspec.json.encode(record) + b"\n")
                room -= len(lines[-1])
                if room < 0:
                    lines.pop()
                    break
                taken += 1
            try:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # a full disk: half a batch would be counted as written by nobody
                os.ftruncate(file.fileno(), begin)
                raise
        return taken

    def take_over(self, journal: Path) -> None:
        """What it holds, at the end of what is here. It is left as it is: a record counts once."""
        if not journal.is_file() or not journal.stat().st_size:
            return
        with _locked(self.path) as file:
            file.write(_ending_the_last(file) + journal.read_bytes())
            file.flush()
            os.fsync(file.fileno())

    def batches(self, size: int) -> Iterator[list[UsageRecord]]:
        batch: list[UsageRecord] = []
        self._read_bytes = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                self._read_bytes += len(line)
                try:
                    batch.append(msgspec.json.decode(line, type=UsageRecord))
                except msgspec.DecodeError as error:  # the process was killed as it wrote
                    log.warning("%s, line %d is no record of use and is left out: %s", self.path, number, error)
                if len(batch) == size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def clear(self) -> None:
        """Deletes what ``batches`` has read to its end. All stays where more came since then, to be read again."""
        with _locked(self.path) as file:
            if file.tell() <= self._read_bytes:
                self.path.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open for adding, at its end. Nobody deletes it meanwhile."""
    while True:
        with path.open("a+b") as file:
            if locks.lock(file.fileno(), waits=True) and not os.fstat(file.fileno()).st_nlink:
                continue  # another gateway has deleted it since it was opened
            file.seek(0, os.SEEK_END)
            yield file
            return


def _ending_the_last(file: BinaryIO) -> bytes:
    """What has to come before the next line, where the process was killed as it wrote the last one."""
    if not file.tell():
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"
