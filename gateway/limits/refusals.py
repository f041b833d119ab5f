"""What is said when a limit is reached. Knows neither HTTP nor where counts are kept."""

from __future__ import annotations

from typing import NamedTuple


class Standing(NamedTuple):
    """Of one limit per minute, after a request was counted or refused."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until the oldest of what is counted is forgotten, so that a bit more is possible; 0 if nothing is counted."""


class LimitReached(Exception):
    """One of the key's own limits. ``retry_seconds`` is None where waiting does not help. The text is for callers."""

    def __init__(self, message: str, retry_seconds: float | None, standing: Standing | None = None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds
        self.standing = standing


class BudgetUsedUp(Exception):
    """The device-seconds of the month. The text is for callers."""
