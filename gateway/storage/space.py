"""How much is kept, of what: one limit over everything in the store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Space:
    max_bytes: int
    files: int = 0
    """Bytes of callers' files: they stay, and a full store refuses more."""
    jobs: int = 0
    """Bytes that jobs take, or may come to take: they stay likewise."""
    pictures: int = 0
    """Bytes of pictures behind urls: the oldest make room."""

    @property
    def excess(self) -> int:
        """Bytes above the limit; none when negative."""
        return self.files + self.jobs + self.pictures - self.max_bytes
