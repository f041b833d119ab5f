"""Differences between two looks at the same tables, as server-sent events, encoded once for all readers. Pure.

A frame's data is a JSON object with some of: ``reset`` (forget everything), ``now`` (Unix time), ``rows`` (whole rows
by table and key), ``changes`` (fields of rows that a reader has; of others they mean nothing), ``gone`` (keys by
table), ``complete`` (all rows were sent).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.pipeline_feed.rows import Row, Table, Tables

CHUNK_BYTES = 16 << 10
"""About as much of a whole state as goes into one frame."""

RESET = b'event: pipeline\ndata: {"reset":true}\n\n'
COMPLETE = b'event: pipeline\ndata: {"complete":true}\n\n'

Key = tuple[str, str]
"""Table and key of a row."""


class Differ:
    def __init__(self) -> None:
        self._tables: dict[str, dict[str, Row]] = {}

    def step(self, tables: Tables, now: float) -> bytes | None:
        """One frame that leads from the tables of the last call to these; None where nothing has changed."""
        news: dict[str, object] = {}
        for name, table in tables.items():
            before = self._tables.get(name, {})
            for part, found in _differences(before, table).items():
                if found:
                    news.setdefault(part, {})[name] = found  # type: ignore[index] # made in this very line
            self._tables[name] = dict(table)
        return frame({"now": round(now, 3), **news}) if news else None

    def keys(self) -> list[Key]:
        """Of all rows, as they are now."""
        return [(name, key) for name, table in self._tables.items() for key in table]

    def whole(self, keys: Iterable[Key]) -> bytes:
        """These rows as they are now; those that are gone are left out. At most as long as one row beyond
        ``CHUNK_BYTES``: ``keys`` is an iterator of which no more is taken than fits."""
        parts: dict[str, dict[str, msgspec.Raw]] = {}
        nbytes = 0
        for name, key in keys:
            row = self._tables.get(name, {}).get(key)
            if row is None:
                continue
            encoded = msgspec.json.encode(row)
            parts.setdefault(name, {})[key] = msgspec.Raw(encoded)
            nbytes += len(encoded)
            if nbytes >= CHUNK_BYTES:
                break
        return frame({"rows": parts}) if parts else b""


def frame(content: object) -> bytes:
    return b"event: pipeline\ndata: %b\n\n" % msgspec.json.encode(content)


def _differences(before: Table, after: Table) -> dict[str, object]:
    rows: dict[str, Row] = {}
    changes: dict[str, Row] = {}
    for key, row in after.items():
        known = before.get(key)
        if known is None:
            rows[key] = row
        elif known is not row and (changed := _changed(known, row)):
            changes[key] = changed
    gone = [key for key in before if key not in after]
    return {"rows": rows, "changes": changes, "gone": gone}


def _changed(before: Row, after: Row) -> dict[str, object]:
    """Fields that are new or other; null for one that is no more."""
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    return changed | {name: None for name in before if name not in after}
