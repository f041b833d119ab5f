"""One bound for the bytes of all uploads under way, on disk and in memory, whoever holds them at the moment."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class RoomTaken(Exception):
    """Uploads under way take all the room there is."""


class Room:
    def __init__(self, max_bytes: int) -> None:
        self.nbytes = 0
        self._max_bytes = max_bytes

    def take(self, nbytes: int) -> None:
        """Raises ``RoomTaken``, and then takes nothing."""
        if self.nbytes + nbytes > self._max_bytes:
            raise RoomTaken(f"uploads under way take {self.nbytes} of {self._max_bytes} bytes")
        self.nbytes += nbytes

    def give_back(self, nbytes: int) -> None:
        self.nbytes -= nbytes

    def share(self) -> Share:
        return Share(self)


class Share:
    """What one request takes of the room; all of it is given back on leaving the ``with`` block."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._nbytes = 0

    def take(self, nbytes: int) -> None:
        """Raises ``RoomTaken``."""
        self._room.take(nbytes)
        self._nbytes += nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.give_back(self._nbytes)
        self._nbytes = 0
