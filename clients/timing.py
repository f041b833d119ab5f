"""Reads the ``server-timing`` header: what each stage of a request took."""

from __future__ import annotations

import re

_ENTRY = re.compile(r"\s*(?P<name>[\w.\-]+)\s*;[^,]*?dur=(?P<ms>[0-9.]+)")


def stage_seconds(header: str) -> list[tuple[str, float]]:
    """``name;dur=MILLISECONDS`` entries in order; what cannot be read is left out."""
    return [(match["name"], float(match["ms"]) / 1000) for match in _ENTRY.finditer(header)]
