"""Writes how a picture was made into its file. The pixels are not touched: PNG, JPEG and WebP take one more block.

The text has the form that Stable Diffusion's tools read: the prompt, if it is wanted, and a line of parameters.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal

from gateway.api.generation import Generation

Mode = Literal["none", "parameters", "parameters+prompt"]

MAX_PROMPT_BYTES = 30_000
"""Of UTF-16, of a prompt and of a negative one: a block of a JPEG holds 65,533 bytes in all."""

_PNG, _PNG_BODY = b"\x89PNG\r\n\x1a\n", 33
"""Signature, and where the chunks after IHDR begin."""
_APP0, _APP1 = 0xE0, 0xE1
_HAS_ALPHA, _HAS_EXIF = 0x10, 0x08


def with_metadata(data: bytes, generation: Generation, image: int, mode: Mode, revised: str = "") -> bytes:
    """Picture number ``image`` of ``generation`` with its parameters in it, and its prompt if ``mode`` says so, which
    is ``revised`` if it was."""
    if mode == "none":
        return data
    return embed(data, describe(generation, image, with_prompt=mode == "parameters+prompt", revised=revised))


def describe(generation: Generation, image: int, *, with_prompt: bool, revised: str = "") -> str:
    params = generation.images[image]
    facts = {
        "Steps": generation.steps or None,
        "CFG scale": generation.guidance and f"{generation.guidance:g}",
        "Seed": params.seed,
        "Size": generation.size,
        "Postprocess upscale by": params.upscale or None,
        "Model": generation.model,
        "Denoising strength": params.strength and f"{params.strength:g}",
        "Step cache": params.step_cache or None,
    }
    line = ", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None)
    if not with_prompt:
        return line
    negative = f"\nNegative prompt: {_shortened(params.negative_prompt)}" if params.negative_prompt else ""
    return f"{_shortened(revised or params.prompt)}{negative}\n{line}"


def _shortened(prompt: str) -> str:
    return prompt.encode("utf-16-be", "replace")[:MAX_PROMPT_BYTES].decode("utf-16-be", "ignore")


def embed(data: bytes, text: str) -> bytes:
    """``text`` as a PNG's ``parameters``, or as ``UserComment`` of the EXIF data of a JPEG or WebP.

    Data of another kind comes back as it is.
    """
    if data.startswith(_PNG):
        chunk = b"iTXt" + b"parameters\0\0\0\0\0" + text.encode()
        block = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return b"".join((data[:_PNG_BODY], block, memoryview(data)[_PNG_BODY:]))
    if data.startswith(b"\xff\xd8\xff"):
        return _in_jpeg(data, b"Exif\0\0" + _exif(text))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _in_webp(data, _exif(text))
    return data


def _exif(text: str) -> bytes:
    """A TIFF structure of two directories with one entry each: the second directory's place, and the comment."""
    comment = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    first = struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, 0x9286, 7, len(comment), 44, 0)
    return b"MM\0*" + struct.pack(">I", 8) + first + second + comment


def _in_jpeg(data: bytes, exif: bytes) -> bytes:
    """After the JFIF segment, which has to be the first."""
    start = 4 + int.from_bytes(data[4:6], "big") if data[3] == _APP0 else 2
    segment = struct.pack(">BBH", 0xFF, _APP1, len(exif) + 2) + exif
    return b"".join((data[:start], segment, data[start:]))


def _in_webp(data: bytes, exif: bytes) -> bytes:
    """Only the extended form has room for more than pixels; its header says what there is."""
    chunks = data[12:]
    if chunks.startswith(b"VP8X"):
        header, chunks = bytes((*chunks[:8], chunks[8] | _HAS_EXIF, *chunks[9:18])), chunks[18:]
    else:
        header = _extended_header(chunks)
    body = b"".join((b"WEBP", header, chunks, b"EXIF", struct.pack("<I", len(exif)), exif, b"\0" * (len(exif) % 2)))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _extended_header(chunks: bytes) -> bytes:
    flags = _HAS_EXIF
    if chunks.startswith(b"VP8L"):
        bits = int.from_bytes(chunks[9:13], "little")
        width, height = bits & 0x3FFF, bits >> 14 & 0x3FFF
        flags |= _HAS_ALPHA if bits >> 28 & 1 else 0
    else:
        width, height = ((edge & 0x3FFF) - 1 for edge in struct.unpack_from("<HH", chunks, 14))
    return struct.pack("<4sII", b"VP8X", 10, flags) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
