"""Reading multipart forms: streamed, bounded in every direction, large files on disk.

python-multipart finds the parts; what they may weigh, where they lie and when they are let go is decided here.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import Request

from gateway.api.body import check_announced, check_media_type, too_large
from gateway.api.errors import ApiError, storage_unavailable
from gateway.storage.room import Room

SPOOL_BYTES = 1 << 20
"""A file up to this size stays in memory."""

MAX_HEADERS = 8
"""Per part, of at most 4 KB each."""

log = logging.getLogger(__name__)

PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")

# It warns of every malformed body, which any client can send at will; they get a 400 instead.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class FormLimits:
    body_bytes: int
    file_bytes: int
    """Of one file."""
    fields_bytes: int
    """Values of all text fields together."""
    seconds: float
    """For the whole body to arrive."""
    files: int = 1
    fields: int = 64


class FormFile:
    """An uploaded file, in memory or on disk. Readable until the form is closed."""

    def __init__(self, name: str, filename: str, content_type: str, folder: Path | None) -> None:
        self.name = name
        self.filename = filename
        """As the client wrote it: trust it with nothing."""
        self.content_type = content_type
        """As the client wrote it, in lower case without parameters; often wrong."""
        self.size = 0
        self._folder = folder
        self._tail = bytearray()
        self._file: IO[bytes] | None = None

    async def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """``size`` bytes from ``offset``, or all that follow."""
        end = self.size if size is None else min(offset + size, self.size)
        if self._file is None:
            return bytes(self._tail[offset:end])
        return await asyncio.to_thread(_read, self._file, offset, max(end - offset, 0))

    async def chunks(self, size: int = SPOOL_BYTES) -> AsyncIterator[bytes]:
        for offset in range(0, self.size, size):
            yield await self.read(offset, size)

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._tail += data

    async def spool(self, at_most: int = SPOOL_BYTES) -> None:
        """Move what is in memory to disk if it is more than ``at_most``. Raises ``OSError``."""
        if len(self._tail) > at_most:
            data, self._tail = self._tail, bytearray()
            if self._file is None:
                self._file = await asyncio.to_thread(_unnamed, self._folder)
            await asyncio.to_thread(self._file.write, data)

    async def settle(self) -> None:
        """No more is added: a file that is partly on disk is there entirely from now on. Raises ``OSError``."""
        if self._file is not None:
            await self.spool(at_most=0)

    def view(self) -> memoryview:
        """All of a settled file; where it lies on disk, without taking memory that could not be taken back."""
        if self._file is None:
            return memoryview(bytes(self._tail))
        self._file.flush()
        return memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))

    def close(self) -> None:
        self._tail.clear()
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True, slots=True)
class Form:
    """Parts in the order they came. Names are kept as sent (``image[]``, ``lora[][path]``), repeated ones too."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    files: list[FormFile] = field(default_factory=list)


class FormReader:
    """Reads the large bodies of all requests, forms and JSON that holds files. They share ``room`` while open."""

    def __init__(self, room: Room, folder: Path | None = None) -> None:
        """``folder`` takes large files, which have no name there; the system's temporary one when None."""
        self._room = room
        self._folder = folder

    @asynccontextmanager
    async def read(self, request: Request, limits: FormLimits) -> AsyncIterator[Form]:
        """The request's form, whose files are closed at the end.

        Raises ``ApiError``, ``RoomTaken``, or ``ClientDisconnect``.
        """
        form = Form()
        parser = _Parser(_boundary(request), form, limits, self._folder)
        try:
            with self._room.share() as share:
                async with _in_time(limits.seconds):
                    async for chunk in _bounded(request, limits.body_bytes):
                        share.take(len(chunk))
                        await parser.feed(chunk)
                    await parser.finish()
                yield form
        finally:
            for file in form.files:
                file.close()

    @asynccontextmanager
    async def read_json(self, request: Request, max_bytes: int, seconds: float) -> AsyncIterator[memoryview]:
        """The bytes of a JSON body: on disk if there are many, and mapped from there. Raises as ``read``."""
        check_media_type(request, "application/json")
        body = FormFile("", "", "application/json", self._folder)
        try:
            with self._room.share() as share:
                async with _in_time(seconds):
                    async for chunk in _bounded(request, max_bytes):
                        share.take(len(chunk))
                        body.add(chunk)
                        with _disk():
                            await body.spool()
                    with _disk():
                        await body.settle()
                        view = await asyncio.to_thread(body.view)
                yield view
        finally:
            body.close()


async def _bounded(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    check_announced(request, max_bytes)
    nbytes = 0
    async for chunk in request.stream():
        nbytes += len(chunk)
        if nbytes > max_bytes:
            raise too_large(max_bytes)
        yield chunk


class _Parser:
    """Fills a form from the events of the multipart parser, which calls back synchronously."""

    def __init__(self, boundary: bytes, form: Form, limits: FormLimits, folder: Path | None) -> None:
        self._form = form
        self._limits = limits
        self._folder = folder
        self._headers: dict[bytes, bytes] = {}
        self._header = (bytearray(), bytearray())
        self._value = bytearray()
        self._name = ""
        self._fields_nbytes = 0
        self._file: FormFile | None = None
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._add,
            "on_part_end": self._close,
        }
        with _refusals():
            self._parser = MultipartParser(boundary, callbacks, max_header_count=MAX_HEADERS)  # type: ignore[arg-type]

    async def feed(self, chunk: bytes) -> None:
        before = len(self._form.files)
        with _refusals():
            self._parser.write(chunk)
        # Files that ended within this chunk, and the one that goes on.
        for file in self._form.files[max(before - 1, 0) :]:
            with _disk():
                await file.spool()

    async def finish(self) -> None:
        if self._parser.state is not MultipartState.END:
            raise _malformed("it ends before its closing boundary")
        for file in self._form.files:
            with _disk():
                await file.settle()

    def _begin(self) -> None:
        self._headers.clear()
        self._file = None

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _open(self) -> None:
        """The headers are complete: a part with a file name is a file, any other a field."""
        disposition, options = parse_options_header(self._headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise _malformed("a part has no 'Content-Disposition: form-data' with a name")
        encoding = self._headers.get(b"content-transfer-encoding", b"").decode("latin-1").strip().lower()
        if encoding not in PLAIN_ENCODINGS:
            raise _malformed("a part has a Content-Transfer-Encoding; send its bytes as they are")
        self._name = _text(options[b"name"], "name of a part")
        if b"filename" not in options:
            if len(self._form.fields) >= self._limits.fields:
                raise _malformed(f"it has more than {self._limits.fields} fields")
            return
        if len(self._form.files) >= self._limits.files:
            raise _malformed(f"it has more than {self._limits.files} files")
        filename = _text(options[b"filename"], f"file name of '{self._name}'")
        content_type = self._headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        self._file = FormFile(self._name, filename, content_type, self._folder)
        self._form.files.append(self._file)

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._fields_nbytes += end - start
            if self._fields_nbytes > self._limits.fields_bytes:
                raise _large(self._name, f"text fields may have {self._limits.fields_bytes} bytes together")
            self._value += data[start:end]
        else:
            if self._file.size + end - start > self._limits.file_bytes:
                raise _large(self._name, f"a file may have {self._limits.file_bytes} bytes")
            self._file.add(data[start:end])

    def _close(self) -> None:
        if self._file is None:
            self._form.fields.append((self._name, _text(bytes(self._value), f"'{self._name}'")))
            self._value.clear()


def _unnamed(folder: Path | None) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def _read(file: IO[bytes], offset: int, size: int) -> bytes:
    """On a worker thread."""
    file.seek(offset)
    return file.read(size)


def _boundary(request: Request) -> bytes:
    check_media_type(request, "multipart/form-data")
    _, options = parse_options_header(request.headers["content-type"])
    if not options.get(b"boundary"):
        raise _malformed("its Content-Type names no boundary")
    return options[b"boundary"]


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _malformed(f"the {what} is not UTF-8") from None


@asynccontextmanager
async def _in_time(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ApiError(f"The body did not arrive within {seconds:g} s.", code="request_timeout", status=408) from None


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise _malformed(str(error)) from None


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.error("an upload cannot be spooled: %s", error.strerror)  # noqa: TRY400 # it is the disk's fault
        raise storage_unavailable() from error


def _malformed(why: str) -> ApiError:
    return ApiError(f"The body is not a valid form: {why}.", code="invalid_form")


def _large(name: str, why: str) -> ApiError:
    return ApiError(f"'{name}' is too large: {why}.", code="request_too_large", param=name, status=413)
