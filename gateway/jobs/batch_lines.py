"""The file of a batch: one request per line, as JSON. Bytes in, lines out; read in one pass, whatever its size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

BOM = b"\xef\xbb\xbf"
"""Windows' editors write it at the beginning of a text in UTF-8."""
MAX_LINES = 50_000
MAX_LINE_BYTES = 32 << 20
"""A data URL of an edit may have 20 MB."""
MAX_ERRORS = 50
"""That are told of one file."""
MAX_CUSTOM_ID = 512


class BatchLine(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Named(msgspec.Struct):
    model: str | None = None


class FileError(msgspec.Struct, frozen=True):
    """OpenAI's error of a batch's file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line lies in its file."""

    number: int
    """From 1."""
    begins: int
    length: int
    custom_id: str
    model: str | None = None
    """That its request names."""


class TooMuch(Exception):
    """The rest of the file is not worth reading."""

    def __init__(self, error: FileError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass
class LineReader:
    """Of one file. ``errors`` grow as it is read."""

    endpoint: str
    errors: list[FileError] = field(default_factory=list)
    count: int = 0
    _number: int = 0
    _at: int = 0
    _rest: list[bytes] = field(default_factory=list)
    _rest_bytes: int = 0
    _seen: set[str] = field(default_factory=set)

    def feed(self, chunk: bytes) -> Iterator[Place]:
        """Good lines that end in ``chunk``. Raises ``TooMuch``."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = b"".join((*self._rest, end))
            self._rest, self._rest_bytes = [], 0
            yield from self._line(line)
            self._at += len(line) + 1
        self._rest.append(rest)
        self._rest_bytes += len(rest)
        if self._rest_bytes > MAX_LINE_BYTES:
            raise TooMuch(FileError("line_too_long", f"A line may have {MAX_LINE_BYTES} bytes.", line=self._number + 1))

    def end(self) -> Iterator[Place]:
        """The last line, if no line feed ended it. Raises ``TooMuch``, also for a file without lines."""
        yield from self._line(b"".join(self._rest))
        if not self.count and not self.errors:
            raise TooMuch(FileError("empty_file", "The file holds no request."))

    def _line(self, raw: bytes) -> Iterator[Place]:
        self._number += 1
        begins = self._at
        if self._number == 1 and raw.startswith(BOM):
            raw, begins = raw[len(BOM) :], begins + len(BOM)
        if not raw.strip():
            return
        try:
            line = self._checked(raw)
        except _Bad as bad:
            self.errors.append(FileError(bad.code, str(bad), self._number, bad.param))
            if len(self.errors) >= MAX_ERRORS:
                raise TooMuch(FileError("too_many_errors", "The file has more errors; these are the first.")) from None
            return
        self.count += 1
        if self.count > MAX_LINES:
            raise TooMuch(FileError("too_many_tasks", f"A batch may have {MAX_LINES} requests."))
        yield Place(self._number, begins, len(raw), line.custom_id, _model(line.body))

    def _checked(self, raw: bytes) -> BatchLine:
        line = read_line(raw)
        if line.method != "POST":
            raise _Bad(f"'method' must be POST, not '{line.method[:40]}'.", "invalid_method", "method")
        if line.url != self.endpoint:
            raise _Bad(
                f"'url' must be the batch's endpoint, {self.endpoint}, not '{line.url[:80]}'.", "invalid_url", "url"
            )
        if not 0 < len(line.custom_id) <= MAX_CUSTOM_ID or "\0" in line.custom_id:  # which PostgreSQL does not store
            message = f"'custom_id' must have 1 to {MAX_CUSTOM_ID} characters, none of them NUL."
            raise _Bad(message, "invalid_custom_id", "custom_id")
        if line.custom_id in self._seen:
            raise _Bad(f"'custom_id' {line.custom_id[:80]!r} was used before.", "duplicate_custom_id", "custom_id")
        self._seen.add(line.custom_id)
        return line


class _Bad(Exception):
    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def _model(body: msgspec.Raw) -> str | None:
    """What else may be wrong with the request is told when it is run."""
    try:
        return msgspec.json.decode(body, type=_Named).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_line(raw: bytes) -> BatchLine:
    """Raises ``_Bad``."""
    try:
        return msgspec.json.decode(raw, type=BatchLine)
    except msgspec.ValidationError as error:
        raise _Bad(f"The line is no request: {error}.", "invalid_request") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Bad(f"The line is no JSON object: {error}.", "invalid_json_line") from None
