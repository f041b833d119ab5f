"""Which gateway this is, to others that share its database, and whether the one before it here is dead.

The name of the gateway that uses a state folder lies there in a file, which is locked as long as its process lives.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.storage import locks

FILE_NAME = "gateway.owner"


class Owner:
    """Raises ``OSError`` where the folder cannot be used."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder nothing is known of earlier gateways."""
        self.name = secrets.token_hex(8)
        self.dead: str | None = None
        """The gateway that was here before this one, and is certainly gone."""
        self._file = None if folder is None or not locks.EXIST else (folder / FILE_NAME).open("a+")
        if self._file is None:
            return
        try:
            locks.lock(self._file.fileno(), waits=False)
        except BlockingIOError:  # two gateways share the folder: neither speaks for the other
            self._file.close()
            self._file = None
            return
        self._file.seek(0)
        self.dead = self._file.read().strip() or None

    def introduce(self) -> None:
        """From now on this gateway is the one before the next. To be called once nothing of ``dead`` is left."""
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(self.name)
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
