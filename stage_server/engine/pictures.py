"""Pictures in and out: uploaded files → PIL, the finished picture → a file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Container, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from stage_server.engine.base import BadJob
from stage_server.engine.png import COMPRESSOR, encode_png

FORMATS = ("png", "jpeg", "webp")
_MODES = {"mask_image": "L"}
"""Input → PIL mode; RGB where not named."""
_SAMPLE_SIDE = 128
_WEBP_METHOD = 0
"""The least effort: a quarter of the time of the default 4, for files that are somewhat larger."""


def open_upload(name: str, data: bytes) -> Image.Image:
    """An uploaded picture, upright, in the mode that blocks expect. Raises ``BadJob``."""
    try:
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadJob(f"{name} is not a readable picture: {error}") from error
    return ImageOps.exif_transpose(picture).convert(_MODES.get(name, "RGB"))


def open_uploads(uploads: Mapping[str, bytes], names: Container[str]) -> dict[str, Any]:
    """Those of ``names``; ``image`` is a list where there are several. Raises ``BadJob``."""
    opened: dict[str, Any] = {}
    references = sorted((name for name in uploads if is_reference(name)), key=reference_index)
    if "image" in names and references:
        several = [open_upload(name, uploads[name]) for name in references]
        opened["image"] = several if len(several) > 1 else several[0]
    for name in ("mask_image", "ip_adapter_image"):
        if name in names and name in uploads:
            opened[name] = open_upload(name, uploads[name])
    return opened


def is_reference(name: str) -> bool:
    """Whether an upload of this name is one of ``image``, ``image_1``, ``image_2``, …"""
    head, _, index = name.partition("_")
    return head == "image" and (name == "image" or index.isdecimal())


def reference_index(name: str) -> int:
    return int(name.partition("_")[2] or 0)


def is_control(name: str) -> bool:
    """Whether an upload of this name is one of ``control_image``, ``control_image_1``, …"""
    head, _, rest = name.partition("_")
    return head == "control" and is_reference(rest)


def control_index(name: str) -> int:
    return reference_index(name.partition("_")[2])


def put_back(drawn: Image.Image, uploads: Mapping[str, bytes]) -> Image.Image:
    """``drawn`` where the mask is white, the uploaded picture where it is black, blended between. Raises ``BadJob``.

    At the size of the upload the pixels under black are the upload's own.
    """
    original, mask = (open_upload(name, uploads[name]) for name in ("image", "mask_image"))
    if original.size != drawn.size:
        original = original.resize(drawn.size, Image.Resampling.LANCZOS)
    if mask.size != drawn.size:
        mask = mask.resize(drawn.size, Image.Resampling.BILINEAR)
    return Image.composite(drawn, original, mask)


def upload_pixels(data: bytes) -> int:
    """Pixels of an uploaded picture, from its header alone; 0 when unreadable."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.width * picture.height
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return 0


def from_channels(values: npt.NDArray[np.uint8]) -> Image.Image:
    """A picture of the bytes (channels, height, width), of one channel, three or four."""
    return Image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))


def encode(picture: Image.Image, file_format: str, compression: int) -> bytes:
    """``picture`` as a file of ``file_format``; the same pixels give the same bytes. JPEG has no transparency: white
    shows through.

    ``compression`` is the JPEG or WebP quality, 0 to 100. Raises ``BadJob`` for another format.
    """
    if file_format not in FORMATS:
        raise BadJob(f"output_format {file_format!r} is not one of {', '.join(FORMATS)}")
    if file_format == "png":
        return encode_png(picture)
    if file_format == "jpeg" and picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    options: dict[str, Any] = {"method": _WEBP_METHOD} if file_format == "webp" else {}
    buffer = io.BytesIO()
    picture.save(buffer, file_format, quality=compression, **options)
    return buffer.getvalue()


@cache
def encoders() -> str:
    """Digest of the files that this process makes of a sample: where it is equal, so are the files of equal pixels.

    By what they write rather than by their versions: libraries choose code by the processor, and not all of it agrees.
    """
    rows, columns = np.mgrid[0:_SAMPLE_SIDE, 0:_SAMPLE_SIDE]
    noise = np.random.PCG64(1).random_raw(_SAMPLE_SIDE * _SAMPLE_SIDE).reshape(rows.shape) % 8
    channels = [rows * 3 + columns + noise, rows * columns // 16 + noise, 255 - columns * 2 + noise]
    sample = Image.fromarray(np.stack(channels, -1).astype(np.uint8))
    files = b"".join(encode(sample, name, compression) for name in FORMATS for compression in (75, 100))
    return f"{COMPRESSOR}-{hashlib.sha256(files).hexdigest()[:16]}"


def encoded_bound(width: int, height: int) -> int:
    """More bytes than any encoding of an RGB picture takes."""
    return width * height * 4 + (64 << 10)
