"""How long a request may take: what the client says it will wait, never longer than the server allows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gateway.api.errors import ApiError
from gateway.settings import Settings

SDK_HEADERS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Sent by OpenAI's Python and Node SDKs of themselves, in seconds; nonsense in them is not the user's mistake."""

HEADER = "x-request-timeout"
"""Ours, in seconds, for everybody else."""


def deadline_seconds(headers: Mapping[str, str], settings: Settings) -> float:
    """Seconds from now. Raises ``ApiError`` when ``x-request-timeout`` is no positive number."""
    limits = [settings.request_timeout_seconds]
    limits += [seconds for name in SDK_HEADERS if (seconds := _positive(headers.get(name))) is not None]
    own = own_seconds(headers)
    return min(limits if own is None else [*limits, own])


def own_seconds(headers: Mapping[str, str]) -> float | None:
    """What the client names in our own header. Raises ``ApiError`` when it is no positive number."""
    text = headers.get(HEADER)
    if text is None:
        return None
    seconds = _positive(text)
    if seconds is None:
        raise ApiError(f"Invalid header '{HEADER}': expected seconds above 0, not '{text[:40]}'.", code="invalid_value")
    return seconds


def _positive(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if seconds > 0 and math.isfinite(seconds) else None
