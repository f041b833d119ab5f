"""A bounded file for records of use while the database is away. One record a line; nobody else reads or writes it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from gateway.database.usage import UsageRecord

log = logging.getLogger(__name__)


class Overflow:
    """Every method may block for a disk's time, and raise ``OSError``."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def exists(self) -> bool:
        return self.path.exists()

    def append(self, records: Sequence[UsageRecord]) -> int:
        """How many of the first ``records`` it took: not all when it is full."""
        with self.path.open("ab") as file:
            room, begin, taken = self._max_bytes - file.tell(), file.tell(), 0
            lines = []
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

    def batches(self, size: int) -> Iterator[list[UsageRecord]]:
        batch: list[UsageRecord] = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
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
        self.path.unlink()
