"""The gateway's stream, put together again. Bytes in, tables out; no sockets and no terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from clients.events import Malformed

Row = Mapping[str, Any]


class Frames:
    """Turns the bytes of a stream of events into JSON objects, in whatever chunks they come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """Raises ``Malformed``."""
        *events, self._rest = (self._rest + chunk).split(b"\n\n")
        for event in events:
            data = b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))
            if data:
                yield _object(data)


class Pipeline:
    """What is known of the pipeline: tables of rows by key."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, dict[str, Any]]] = {}
        self.is_complete = False
        """The whole state was told, and differences since."""

    def take(self, told: Mapping[str, Any]) -> None:
        if told.get("reset"):
            self._tables, self.is_complete = {}, False
        for table, rows in told.get("rows", {}).items():
            self._tables.setdefault(table, {}).update(rows)
        for table, changes in told.get("changes", {}).items():
            known = self._tables.get(table, {})
            for key in changes.keys() & known.keys():
                known[key] |= changes[key]
        for table, keys in told.get("gone", {}).items():
            for key in keys:
                self._tables.get(table, {}).pop(key, None)
        self.is_complete = self.is_complete or bool(told.get("complete"))

    def rows(self, table: str) -> Mapping[str, Row]:
        return self._tables.get(table, {})


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Malformed(f"an event that is no JSON object: {data[:80]!r}")
    return found
