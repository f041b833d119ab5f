"""Processes that decode: what they are sent comes back, and whatever ends them ends no more than that."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from gateway.decoding.decoders import Decoders, NoDecoder
from gateway.decoding.pictures import BadPicture, Decoding, InputPicture, decode

IMAGE = Decoding("image", 60 << 20, 64_000_000, 1_000_000)
EDITED = Decoding("image", 60 << 20, 64_000_000, 1_000_000, alpha_is_mask=True)
MASK = Decoding("mask", 60 << 20, 64_000_000, 1_000_000)


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    made = Decoders(IMAGE.max_pixels)
    yield made
    made.close()


def encoded(kind: str, mode: str = "RGBA", size: tuple[int, int] = (48, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 200 if mode == "L" else (200, 30, 40, 128)[: len(mode)]).save(buffer, kind)
    return buffer.getvalue()


LARGE = (6000, 6000)


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A PNG that takes a second to decode."""
    width, height = LARGE
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    rows = zlib.compressobj(1)
    row = b"\4" + b"\1\2\3\4" * width  # Paeth, the slowest filter
    data = b"".join([*(rows.compress(row) for _ in range(height)), rows.flush()])
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("data", "how"),
    [(encoded("PNG"), IMAGE), (encoded("WEBP"), EDITED), (encoded("PNG"), MASK), (encoded("JPEG", "RGB"), EDITED)],
)
async def test_what_comes_back_is_what_decoding_makes(decoders, data, how):
    assert await decoders.decode(data, how) == decode(data, how)


async def test_a_refusal_comes_back_and_the_process_stays(decoders):
    with pytest.raises(BadPicture, match="no picture that we know"):
        await decoders.decode(b"hello, this is no picture", IMAGE)
    (first,) = decoders.processes()
    with pytest.raises(BadPicture, match="no alpha channel"):
        await decoders.decode(encoded("PNG", "RGB"), MASK)
    assert decoders.processes() == [first]


async def test_two_at_a_time_have_a_process_each(decoders):
    pictures = [encoded("PNG", size=(40 + index, 20)) for index in range(6)]
    found = await asyncio.gather(*(decoders.decode(picture, IMAGE) for picture in pictures))
    assert [picture.sent_size for picture in found] == [(40 + index, 20) for index in range(6)]
    assert len(decoders.processes()) <= 2


async def test_one_that_was_killed_is_started_again(decoders):
    await decoders.decode(encoded("PNG"), IMAGE)
    (first,) = decoders.processes()
    os.kill(first, signal.SIGKILL)
    assert isinstance(await decoders.decode(encoded("PNG"), IMAGE), InputPicture)
    assert decoders.processes() != [first]


async def test_one_killed_in_the_middle_of_a_picture_is_started_again_for_it(decoders, slow):
    await decoders.decode(encoded("PNG"), IMAGE)
    (first,) = decoders.processes()
    decoding = asyncio.create_task(decoders.decode(slow, IMAGE))
    await asyncio.to_thread(until_busy, first)
    os.kill(first, signal.SIGKILL)
    assert (await decoding).sent_size == LARGE
    assert decoders.processes() != [first]


async def test_nobody_waits_and_the_process_is_killed(decoders, slow):
    await decoders.decode(encoded("PNG"), IMAGE)
    (first,) = decoders.processes()
    decoding = asyncio.create_task(decoders.decode(slow, IMAGE))
    await asyncio.to_thread(until_busy, first)
    decoding.cancel()
    await asyncio.wait([decoding])
    assert isinstance(await decoders.decode(encoded("PNG"), IMAGE), InputPicture)
    assert first not in decoders.processes()


async def test_what_takes_too_long_is_refused_and_the_next_is_not(slow):
    impatient = Decoders(IMAGE.max_pixels, seconds=0.05)
    with pytest.raises(BadPicture, match="too long"):
        await impatient.decode(slow, IMAGE)
    impatient.close()


async def test_what_takes_too_much_memory_is_refused(slow):
    """36 megapixels of RGBA take 144 MB, and the bound is for pictures of one pixel."""
    poor = Decoders(max_pixels=1, process_bytes=150 << 20)
    with pytest.raises(BadPicture, match="memory"):
        await poor.decode(slow, IMAGE)
    assert isinstance(await poor.decode(encoded("PNG"), IMAGE), InputPicture)
    poor.close()


def test_it_ends_with_the_gateway():
    """However the gateway ends: the other end of the socket is closed."""
    program = (
        "import asyncio, os; from gateway.decoding.decoders import Decoders; from gateway.decoding.pictures import *\n"
        "d = Decoders(1000)\n"
        "try: asyncio.run(d.decode(b'no picture at all, no', Decoding('image', 99, 99, 99)))\n"
        "except BadPicture: print(d.processes()[0], flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    while not is_over(int(done.stdout)):
        os.sched_yield()


async def test_where_no_process_can_be_started_it_says_so(decoders, monkeypatch):
    def no_process(*arguments: object, **options: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", no_process)
        with pytest.raises(NoDecoder, match="temporarily unavailable"):
            await decoders.decode(encoded("PNG"), IMAGE)
    assert isinstance(await decoders.decode(encoded("PNG"), IMAGE), InputPicture)


async def test_once_closed_none_is_started(decoders):
    await decoders.decode(encoded("PNG"), IMAGE)
    decoders.close()
    with pytest.raises(RuntimeError):
        await decoders.decode(encoded("PNG"), IMAGE)


def test_it_imports_little():
    """Its start is what the first edit waits for."""
    program = "import sys, gateway.decoding.worker; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "PIL.Image" in modules
    assert not {"numpy", "fastapi", "pydantic", "msgspec", "asyncio"} & set(modules)


def until_busy(pid: int) -> None:
    """Until the process has computed on after its start."""
    begun = ticks(pid)
    while ticks(pid) < begun + 5:
        os.sched_yield()


def ticks(pid: int) -> int:
    with Path(f"/proc/{pid}/stat").open(encoding="ascii") as stat:
        return int(stat.read().rpartition(")")[2].split()[11])


def is_over(pid: int) -> bool:
    """Nobody may be there to ask after its end."""
    try:
        with Path(f"/proc/{pid}/stat").open(encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
