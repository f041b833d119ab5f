"""Pictures that clients send: decoded once, and passed on upright, in 8-bit RGB, without metadata, as PNG.

What a client says about a picture (its name, its type) is never believed. No stage server sees what was sent itself.

This runs in the processes of ``worker``: it may import Pillow and the standard library, which take 50 ms and 18 MB.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps

SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"))
OTHERS = ((b"GIF8", "a GIF"), (b"II*\0", "a TIFF"), (b"MM\0*", "a TIFF"), (b"BM", "a BMP"), (b"%PDF", "a PDF"))
FEWEST_BYTES = 16
"""That tell what a file is."""

MAX_PROFILE_BYTES = 4 << 20
"""A colour profile is not worth more work; those of printers have up to 3 MB."""

SIDEWAYS = (5, 6, 7, 8)
"""Orientations in EXIF that exchange width and height."""

WHITE = (255, 255, 255)


class BadPicture(Exception):
    """It is refused. The text is for callers; the cause, if there is one, for the log."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """What to make of a picture."""

    param: str
    """``image``, or ``mask``: then it is its alpha that counts, and errors name it."""
    max_bytes: int
    """Of the file."""
    max_pixels: int
    """More are not decoded."""
    shrink_to: int
    """Pixels of what is passed on, at most."""
    alpha_is_mask: bool = False
    """Transparent parts are to be edited; otherwise they become white."""


@dataclass(frozen=True, slots=True)
class InputPicture:
    png: bytes
    """8-bit RGB."""
    sent_size: tuple[int, int]
    """Width and height, upright, before it was shrunk."""
    mask: bytes | None = None
    """8-bit grey PNG of the same size as ``png``, 255 where it is transparent; None where it is opaque everywhere."""


def decode(data: bytes, how: Decoding) -> InputPicture:
    """Slow: for a worker process. Raises ``BadPicture``."""
    return _decode_mask(data, how) if how.param == "mask" else _decode_image(data, how)


def _decode_image(data: bytes, how: Decoding) -> InputPicture:
    picture, sent_size = _open(data, how)
    profile = picture.info.get("icc_profile")
    picture = _shrunk(_eight_bit(picture), how.shrink_to)
    if picture.mode != "RGBA":
        return InputPicture(_png(_rgb(picture, profile), 0), sent_size)
    alpha = picture.getchannel("A")
    rgb = _rgb(picture.convert("RGB"), profile)
    if not how.alpha_is_mask:
        return InputPicture(_png(Image.composite(rgb, Image.new("RGB", rgb.size, WHITE), alpha), 0), sent_size)
    return InputPicture(_png(rgb, 0), sent_size, _edited(alpha))


def _decode_mask(data: bytes, how: Decoding) -> InputPicture:
    """``png`` is 8-bit grey, 255 where the mask is transparent: there the picture is edited."""
    picture, size = _open(data, how)
    picture = _eight_bit(picture)
    if picture.mode != "RGBA":
        raise BadPicture(
            "The mask has no alpha channel: its transparent pixels say where to edit, its opaque ones what to keep."
        )
    alpha = _shrunk(picture.getchannel("A"), how.shrink_to)
    return InputPicture(_png(ImageChops.invert(alpha), 1), size)


def check_signature(head: bytes) -> str:
    """The format that the first ``FEWEST_BYTES`` of a file show. Raises ``BadPicture``."""
    for signature, name in SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<svg", b"<?xml", b"<!")):
        found = "SVG, or another text"
    elif head[4:8] == b"ftyp":
        found = "a HEIC, AVIF or video file"
    else:
        found = next((name for signature, name in OTHERS if head.startswith(signature)), "no picture that we know")
    raise BadPicture(f"The file must be PNG, JPEG or WebP; this is {found}.")


def _open(data: bytes, how: Decoding) -> tuple[Image.Image, tuple[int, int]]:
    """Decoded and upright; beside it its size as it was sent, upright too."""
    if len(data) > how.max_bytes:
        raise BadPicture(f"The file is too large: at most {how.max_bytes} bytes.")
    known = check_signature(data[:FEWEST_BYTES])
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=(known,))
        _check(picture, known, how)
        width, height = picture.size
        if known == "JPEG":
            _decode_at_scale(picture, how.shrink_to)
        picture.load()
        turned = picture.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        ImageOps.exif_transpose(picture, in_place=True)
    except (BadPicture, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels(how) from None
    except Exception as error:  # decoders of hostile files raise what they stumble over: struct.error, KeyError, …
        raise BadPicture("The picture is damaged: it cannot be decoded.") from error
    return picture, (height, width) if turned else (width, height)


def _check(picture: Image.Image, known: str, how: Decoding) -> None:
    """What the header tells. Nothing large has been decoded yet."""
    if picture.width * picture.height > how.max_pixels:
        raise _too_many_pixels(how)
    # A JPEG of several pictures is a photo and its preview.
    if known != "JPEG" and getattr(picture, "is_animated", False):
        raise BadPicture("The picture is animated; send a still one.")


def _too_many_pixels(how: Decoding) -> BadPicture:
    return BadPicture(f"The picture has more than {how.max_pixels} pixels.")


def _decode_at_scale(picture: Image.Image, most: int) -> None:
    """Let JPEG's decoder leave out what shrinking would throw away: a half, a quarter or an eighth is decoded."""
    scale = math.sqrt(most / (picture.width * picture.height))
    if scale < 1:
        picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))


def _eight_bit(picture: Image.Image) -> Image.Image:
    """In mode L, RGB, RGBA or CMYK."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return Image.frombytes("L", picture.size, picture.tobytes("raw", "I;16B")[::2])
    if picture.mode in ("LA", "La", "PA", "RGBa") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture if picture.mode in ("L", "RGB", "RGBA", "CMYK") else picture.convert("RGB")


def _rgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """In sRGB, which is what is left once the profile is dropped."""
    if profile and len(profile) <= MAX_PROFILE_BYTES and picture.mode in ("RGB", "CMYK"):
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(own):  # by itself a conversion to the same moves pixels
                converted = ImageCms.profileToProfile(picture, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert converted is not None  # noqa: S101 # only in place there is none
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken one is no reason to refuse the picture
    return picture.convert("RGB")


def _shrunk(picture: Image.Image, most: int) -> Image.Image:
    scale = math.sqrt(most / (picture.width * picture.height))
    if scale >= 1:
        return picture
    width, height = (max(int(edge * scale), 1) for edge in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _edited(alpha: Image.Image) -> bytes | None:
    lowest = alpha.getextrema()[0]
    return None if lowest == 255 else _png(ImageChops.invert(alpha), 1)


def _png(picture: Image.Image, level: int) -> bytes:
    """Without filters, which are what Pillow spends its time on: a picture of 1024² takes 10 ms here at level 0, 125 ms
    there, and 210 ms at level 1, which makes it a third smaller. Masks compress well, and take level 1."""
    pixels = memoryview(picture.tobytes())
    width = len(pixels) // picture.height
    rows = b"".join(
        piece
        for top in range(0, len(pixels), width)
        for piece in (b"\0", pixels[top : top + width])  # each begins with its filter: 0, none
    )
    colour = {"L": 0, "RGB": 2}[picture.mode]
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, level)), (b"IEND", b""))
    return b"".join((SIGNATURES[0][0], *(piece for kind, data in chunks for piece in _chunk(kind, data))))


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
