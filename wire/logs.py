"""How a process writes its log to stderr: text for people, in colour on a terminal, or a JSON object on each line.

A record may carry fields of its own, ``extra={"about": {…}}``, or get those of its thread or task (``note_about``):
JSON has them, text does not.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

from opentelemetry import trace

Format = Literal["text", "json"]

_about: ContextVar[Mapping[str, object] | None] = ContextVar("about", default=None)


def note_about(fields: Mapping[str, object]) -> None:
    """From now on the lines of this thread, or asyncio task, have these fields."""
    _about.set(fields)


COLOURS: Mapping[str, str] = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
"""Of terminals (SGR), by level; others have none."""


class TextLines(logging.Formatter):
    def __init__(self, process: str, *, is_coloured: bool) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process.replace('%', '%%')} %(message)s")
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        colour = COLOURS.get(record.levelname, "") if self._is_coloured else ""
        return f"\x1b[{colour}m{line}\x1b[0m" if colour else line


class JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            told |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
        told |= getattr(record, "about", None) or _about.get() or {}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def log_to_stderr(process: str, level: str, form: Format, stream: TextIO | None = None) -> None:
    """``process``: its name for people. ``stream``: instead of stderr, for tests."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(process) if form == "json" else TextLines(process, is_coloured=stream.isatty()))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
