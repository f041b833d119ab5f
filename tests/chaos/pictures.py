"""What an emulated picture says of itself in its pixels: read by whoever got it, with a decoder that is not ours."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, UnidentifiedImageError

CODE_BYTES = 16
"""Eight of the seed, eight of the prompt's digest."""


class NoPicture(Exception):
    """The bytes are no picture that can be decoded, or one without a code."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a picture is, or what it should be."""

    seed: int
    digest: str
    size: tuple[int, int]

    @classmethod
    def wanted(cls, prompt: str, seed: int, size: tuple[int, int]) -> Said:
        return cls(seed, hashlib.sha256(prompt.encode()).hexdigest()[:CODE_BYTES], size)


def read(data: bytes) -> Said:
    """Raises ``NoPicture``."""
    try:
        with Image.open(BytesIO(data)) as picture:
            picture.load()
            width, height = picture.size
            pixels = picture.convert("1").tobytes()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise NoPicture(f"{len(data)} bytes that are no picture: {error}") from error
    per_row, stride = width // 8, (width + 7) // 8
    code = b"".join(pixels[row * stride : row * stride + per_row] for row in range(height))[:CODE_BYTES]
    if len(code) < CODE_BYTES or not any(code[8:]):
        raise NoPicture(f"a picture of {width} x {height} without a code")
    return Said(int.from_bytes(code[:8], "big"), code[8:].hex(), (width, height))
