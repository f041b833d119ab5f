"""Which of its own requests a caller wants first. Between callers it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.api.errors import ApiError

HEADER = "x-priority"
LOWEST, HIGHEST = -10, 10


def priority(headers: Mapping[str, str]) -> int:
    """0 without the header. Raises ``ApiError`` for what is no whole number in the range."""
    text = headers.get(HEADER, "0").strip()
    digits = text.removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 4 and LOWEST <= int(text) <= HIGHEST):
        raise ApiError(
            f"Invalid header '{HEADER}': expected a whole number from {LOWEST} to {HIGHEST}, not '{text[:40]}'.",
            code="invalid_value",
        )
    return int(text)
