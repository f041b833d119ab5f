from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from gateway.api.errors import ApiError
from gateway.api.forms import SPOOL_BYTES, Form, FormLimits, FormReader
from gateway.storage.room import Room, RoomTaken

LIMITS = FormLimits(body_bytes=8 << 20, file_bytes=4 << 20, fields_bytes=1 << 10, seconds=5, files=3, fields=5)
HEADERS = {"content-type": "multipart/form-data; boundary=XX"}


def part(name: str, data: bytes, filename: str | None = None, *more: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    head = "\r\n".join((disposition, *more))
    return b"--XX\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


def request(chunks: Sequence[bytes], headers: dict[str, str] = HEADERS, *, ends: bool = True) -> Request:
    """``ends`` False: the client hangs up after the chunks."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b""} if ends else {"type": "http.disconnect"})
    left = iter(messages)

    async def receive() -> dict[str, object]:
        try:
            return next(left)
        except StopIteration:
            await asyncio.Event().wait()
            raise

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


@pytest.fixture
def reader(tmp_path):
    reader = FormReader(Room(16 << 20), tmp_path)
    yield reader
    assert reader._room.nbytes == 0


async def read(reader: FormReader, *parts: bytes, limits: FormLimits = LIMITS) -> Form:
    async with reader.read(request([body(*parts)]), limits) as form:
        return form


async def refusal(reader: FormReader, asked: Request, limits: FormLimits = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        async with reader.read(asked, limits):
            pass
    assert reader._room.nbytes == 0
    return caught.value


async def test_names_are_kept_in_order_and_repeated(reader):
    form = await read(
        reader,
        part("prompt", "ein Kreis, größer".encode()),
        part("image[]", b"a", "upload", "Content-Type: application/octet-stream"),
        part("lora[][path]", b"one"),
        part("image[]", b"bb", "ä.png", "content-type: IMAGE/PNG; x=y"),
        part("lora[][path]", b""),
    )
    assert form.fields == [("prompt", "ein Kreis, größer"), ("lora[][path]", "one"), ("lora[][path]", "")]
    assert [(file.name, file.filename, file.content_type, file.size) for file in form.files] == [
        ("image[]", "upload", "application/octet-stream", 1),
        ("image[]", "ä.png", "image/png", 2),
    ]


@pytest.mark.parametrize("size", [0, 1, SPOOL_BYTES, SPOOL_BYTES + 1, 3 * SPOOL_BYTES + 17])
async def test_a_file_can_be_read_anywhere_wherever_it_lies(reader, size):
    data = bytes(index % 251 for index in range(size))
    whole = body(part("file", data, "x"))
    pieces = [whole[start : start + 70_001] for start in range(0, len(whole), 70_001)]
    async with reader.read(request(pieces), LIMITS) as form:
        (file,) = form.files
        assert reader._room.nbytes == len(whole)
        assert await file.read() == data
        assert await file.read(5, 7) == data[5:12]
        assert await file.read(size + 3, 1) == b""
        assert b"".join([chunk async for chunk in file.chunks(100_000)]) == data
        assert (file._file is not None) == (size > SPOOL_BYTES)
    assert file._file is None or file._file.closed


async def test_large_files_have_no_name_on_disk(reader, tmp_path):
    async with reader.read(request([body(part("file", bytes(2 * SPOOL_BYTES), "x"))]), LIMITS):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"--XX",
        b"hello",
        b"--XY\r\n\r\n",
        body(part("a", b"1"))[:-6],
        part("a", b"1"),
        body(b"--XX\r\n\r\nno headers\r\n"),
        body(b"--XX\r\nContent-Disposition: attachment; name=a\r\n\r\n1\r\n"),
        body(b"--XX\r\nContent-Disposition: form-data\r\n\r\n1\r\n"),
        body(b"--XX\r\nContent-Disposition form-data\r\n\r\n1\r\n"),
        body(b'--XX\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n1\r\n'),
        body(part("a", b"\xff")),
        body(part("a", b"1", "x", "Content-Transfer-Encoding: base64")),
        body(part("a", b"1", None, *(f"x-{index}: 1" for index in range(9)))),
        body(part("a", b"1", None, "x: " + 9000 * "y")),
        body(*(part(f"f{index}", b"1") for index in range(6))),
        body(*(part(f"f{index}", b"1", "x") for index in range(4))),
    ],
)
async def test_what_is_no_form_is_refused(reader, raw):
    error = await refusal(reader, request([raw]))
    assert (error.status, error.code) == (400, "invalid_form")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("", 415),
        ("application/json", 415),
        ("multipart/mixed; boundary=XX", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=" + 300 * "x", 400),
    ],
)
async def test_media_types(reader, content_type, status):
    error = await refusal(reader, request([body(part("a", b"1"))], {"content-type": content_type}))
    assert error.status == status


async def test_a_body_may_have_so_many_bytes_announced_or_not(reader):
    limits = replace(LIMITS, body_bytes=100)
    announced = await refusal(reader, request([], HEADERS | {"content-length": "101"}), limits)
    chunked = await refusal(reader, request([b"--XX", bytes(97)]), limits)
    assert {(error.status, error.code) for error in (announced, chunked)} == {(413, "request_too_large")}


async def test_files_and_fields_may_have_so_many_bytes(reader):
    limits = replace(LIMITS, file_bytes=10, fields_bytes=10)
    await read(reader, part("a", bytes(10), "x"), part("b", bytes(10), "x"), part("c", bytes(10)), limits=limits)
    file = await refusal(reader, request([body(part("a", bytes(11), "x"))]), limits)
    fields = await refusal(reader, request([body(part("b", bytes(6)), part("c", bytes(5)))]), limits)
    assert [(error.status, error.param) for error in (file, fields)] == [(413, "a"), (413, "c")]


async def test_all_requests_share_one_limit(tmp_path):
    reader = FormReader(Room(1000), tmp_path)
    whole = body(part("a", bytes(600), "x"))
    async with reader.read(request([whole]), LIMITS):
        with pytest.raises(RoomTaken):
            async with reader.read(request([whole]), LIMITS):
                pass
        assert reader._room.nbytes == len(whole)
    assert reader._room.nbytes == 0


@pytest.mark.parametrize("size", [0, 10, SPOOL_BYTES, 2 * SPOOL_BYTES + 1])
async def test_json_lies_wherever_there_is_room(reader, size):
    raw = bytes(index % 251 for index in range(size))
    chunks = [raw[start : start + 70_001] for start in range(0, size, 70_001)]
    async with reader.read_json(request(chunks, {"content-type": "application/json"}), 8 << 20, 5) as view:
        assert bytes(view) == raw
        assert reader._room.nbytes == size


async def test_json_has_its_limits_too(reader):
    for chunks, limit, status in (([b"{}"], 1, 413), ([], 10, 415)):
        headers = {"content-type": "application/json" if status == 413 else "text/plain"}
        with pytest.raises(ApiError) as caught:
            async with reader.read_json(request(chunks, headers), limit, 5):
                pass
        assert caught.value.status == status


async def test_a_body_that_never_ends_is_given_up(reader):
    messages = iter([{"type": "http.request", "body": part("a", b"1", "x"), "more_body": True}])

    async def receive() -> dict[str, object]:
        for message in messages:
            return message
        return await asyncio.Event().wait()

    asked = request([])
    asked._receive = receive
    error = await refusal(reader, asked, replace(LIMITS, seconds=0.01))
    assert (error.status, error.code) == (408, "request_timeout")


async def test_a_client_that_hangs_up_leaves_nothing(reader):
    with pytest.raises(ClientDisconnect):
        async with reader.read(request([part("a", bytes(2 * SPOOL_BYTES), "x")], ends=False), LIMITS):
            pass


async def test_a_disk_that_refuses_is_no_traceback(tmp_path, caplog):
    reader = FormReader(Room(16 << 20), tmp_path / "gone")
    error = await refusal(reader, request([body(part("a", bytes(2 * SPOOL_BYTES), "x"))]))
    assert (error.status, error.code) == (503, "storage_unavailable")
    assert "gone" not in error.message
    assert "cannot be spooled" in caplog.text


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


FIELDS = st.tuples(st.sampled_from(["image", "image[]", "lora[][path]", "ü"]), st.binary(max_size=40), st.booleans())


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[start:end] for start, end in pairwise(edges)]


@given(st.lists(FIELDS, max_size=3), st.lists(st.integers(0, 1000), max_size=8))
@example([("image", b"\r\n--X\r\n--", True)], [60, 61, 62, 63, 64])
def test_every_form_is_read_however_it_is_cut(runner, parts, places):
    parts = [(name, data if is_file else data.hex().encode(), is_file) for name, data, is_file in parts]
    raw = body(*(part(name, data, "x" if is_file else None) for name, data, is_file in parts if b"--XX" not in data))

    async def check() -> None:
        async with FormReader(Room(1 << 20)).read(request(cut(raw, places)), LIMITS) as form:
            assert form.fields == [(name, data.decode()) for name, data, is_file in parts if not is_file]
            files = [(file.name, await file.read()) for file in form.files]
            assert files == [(name, data) for name, data, is_file in parts if is_file]

    runner.run(check())


PIECES = [b"--XX", b"--XX--", b"\r\n", b"\r\n--XX", b"\r\n\r\n", b":", b"\x00", b"\xff", b'"', b";", b" ", b"-", b"\r"]
HEADS = [b'Content-Disposition: form-data; name="a"', b'; filename="b"', b"Content-Type: image/png", b"x" * 200]


@given(st.lists(st.sampled_from(PIECES + HEADS) | st.binary(max_size=6), max_size=30), st.lists(st.integers(0, 3000)))
def test_whatever_comes_is_a_form_or_refused(runner, pieces, places):
    reader = FormReader(Room(1 << 20))
    statuses = set()

    async def check() -> None:
        try:
            async with reader.read(request(cut(b"".join(pieces), places)), LIMITS):
                pass
        except ApiError as error:
            statuses.add(error.status)
        assert reader._room.nbytes == 0

    runner.run(check())
    assert statuses <= {400, 413}
