"""What becomes of pictures that clients send."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gateway.decoding.pictures import BadPicture, Decoding, InputPicture, decode

IMAGE = Decoding("image", 1 << 20, 1_000_000, 1_000_000)
EDITED = Decoding("image", 1 << 20, 1_000_000, 1_000_000, alpha_is_mask=True)
MASK = Decoding("mask", 1 << 20, 1_000_000, 1_000_000)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def file(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(png: bytes) -> np.ndarray:
    opened = Image.open(io.BytesIO(png))
    assert opened.format == "PNG"
    assert opened.info == {}
    return np.asarray(opened)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND", b"")))


def refusal(data: bytes, how: Decoding = IMAGE) -> str:
    with pytest.raises(BadPicture) as caught:
        decode(data, how)
    return str(caught.value)


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 48)])
def test_every_pixel_of_rgb_is_kept(size):
    sent = noise(size[1], size[0], 3)
    for data in (file(Image.fromarray(sent)), file(Image.fromarray(sent), "WEBP", lossless=True)):
        got = decode(data, EDITED)
        assert (pixels(got.png) == sent).all()
        assert (got.sent_size, got.mask) == (size, None)


def test_sixteen_bits_of_grey_become_eight():
    sent = (np.arange(256 * 256) % 65536).astype(np.uint16).reshape(256, 256)
    got = pixels(decode(file(Image.fromarray(sent)), IMAGE).png)
    assert (got == (sent >> 8)[..., None]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_other_modes_become_rgb(mode):
    sent = Image.fromarray(noise(8, 8, 3)).convert(mode)
    assert (pixels(decode(file(sent), IMAGE).png) == np.asarray(sent.convert("RGB"))).all()


def test_cmyk_becomes_rgb():
    sent = Image.new("RGB", (16, 16), RED).convert("CMYK")
    got = pixels(decode(file(sent, "JPEG", quality=100), IMAGE).png)
    assert np.abs(got[8, 8].astype(int) - RED).max() < 8


def test_a_photo_is_turned_upright_and_tells_nothing():
    sent = Image.new("RGB", (32, 16), RED)
    sent.paste(BLUE, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    exif[0x010E] = "a place"
    data = file(sent, "JPEG", exif=exif, quality=100, comment=b"a name")
    got = decode(data, IMAGE)
    assert got.sent_size == (16, 32)
    upright = pixels(got.png).astype(int)
    assert np.abs(upright[4, 8] - BLUE).max() < 8
    assert np.abs(upright[28, 8] - RED).max() < 8
    assert b"a place" in data
    assert b"a place" not in got.png
    assert b"a name" not in got.png


def test_colours_are_converted_and_the_profile_dropped():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    other = bytearray(lab.tobytes()).replace(b"s\0R\0G\0B", b"o\0t\0h\0e").replace(b"sRGB", b"othe")
    red_matrix = other.index(b"rXYZ")
    at, length = struct.unpack(">II", other[red_matrix + 4 : red_matrix + 12])
    other[at + 8 : at + length] = struct.pack(">iii", int(0.30 * 65536), int(0.12 * 65536), int(0.01 * 65536))
    sent = Image.new("RGB", (8, 8), (180, 60, 60))
    plain = decode(file(sent, icc_profile=lab.tobytes()), IMAGE)
    converted = decode(file(sent, icc_profile=bytes(other)), IMAGE)
    broken = decode(file(sent, icc_profile=b"not a profile" * 20), IMAGE)
    assert (pixels(plain.png) == np.asarray(sent)).all()
    assert (pixels(broken.png) == np.asarray(sent)).all()
    assert pixels(converted.png)[0, 0, 0] < 180


def test_a_large_picture_is_made_smaller():
    how = Decoding("image", 1 << 20, 1_000_000, 10_000)
    for kind in ("PNG", "JPEG"):
        got = decode(file(Image.new("RGB", (800, 400), RED), kind), how)
        height, width, _ = pixels(got.png).shape
        assert got.sent_size == (800, 400)
        assert width * height <= 10_000
        assert (width, height) == (141, 70)


def test_a_large_photo_on_its_side_is_measured_upright():
    exif = Image.Exif()
    exif[0x0112] = 8
    got = decode(file(Image.new("RGB", (800, 400)), "JPEG", exif=exif), Decoding("image", 1 << 20, 1_000_000, 10_000))
    assert got.sent_size == (400, 800)
    assert pixels(got.png).shape[:2] == (141, 70)


# --- alpha ------------------------------------------------------------------------------------------------------------


def with_alpha() -> tuple[Image.Image, np.ndarray]:
    alpha = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    picture = Image.fromarray(np.dstack((noise(64, 64, 3), alpha)))
    return picture, alpha


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_parts_are_the_mask(kind):
    sent, alpha = with_alpha()
    got = decode(file(sent, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})), EDITED)
    assert got.mask is not None
    assert (pixels(got.mask) == 255 - alpha).all()
    assert (pixels(got.png) == np.asarray(sent)[..., :3]).all()


def test_elsewhere_transparent_parts_are_white():
    sent, _ = with_alpha()
    got = decode(file(sent), IMAGE)
    assert got.mask is None
    white = pixels(got.png)[:, 0]
    assert (white == 255).all()


@pytest.mark.parametrize("mode", ["P", "RGB", "L", "LA"])
def test_a_transparent_colour_is_a_mask_too(mode):
    sent = Image.new("L", (4, 4), 255)
    sent.putpixel((1, 2), 0)
    if mode == "LA":
        sent.putalpha(sent.copy())
        data = file(sent)
    else:
        data = file(sent.convert(mode), transparency=(0, 0, 0) if mode == "RGB" else 0)
    got = decode(data, EDITED)
    assert got.mask is not None
    assert np.argwhere(pixels(got.mask) == 255).tolist() == [[2, 1]]


def test_a_mask_is_its_alpha_turned_round():
    sent, alpha = with_alpha()
    got = decode(file(sent), MASK)
    assert (pixels(got.png) == 255 - alpha).all()
    assert got.sent_size == (64, 64)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_mask_without_alpha_is_refused(mode):
    assert "no alpha channel" in refusal(file(Image.new(mode, (4, 4))), MASK)


# --- what is refused --------------------------------------------------------------------------------------------------

STILL = Image.new("RGB", (8, 8), RED)
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), BLUE)]}

REFUSED = {
    "nothing": (b"", "no picture that we know"),
    "text": (b"hello, this is no picture", "no picture that we know"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "SVG with a head": (b'\xef\xbb\xbf<?xml version="1.0"?><svg/>', "SVG"),
    "GIF": (file(STILL, "GIF"), "a GIF"),
    "animated GIF": (file(STILL, "GIF", **FRAMES), "a GIF"),
    "TIFF": (file(STILL, "TIFF"), "a TIFF"),
    "BMP": (file(STILL, "BMP"), "a BMP"),
    "AVIF": (b"\0\0\0\x20ftypavif" + bytes(40), "AVIF"),
    "PDF": (b"%PDF-1.7 and so on", "a PDF"),
    "animated PNG": (file(STILL, "PNG", **FRAMES), "animated"),
    "animated WebP": (file(STILL, "WEBP", **FRAMES), "animated"),
    "truncated PNG": (file(Image.fromarray(noise(64, 64, 3)))[:-4000], "damaged"),
    "truncated JPEG": (file(Image.fromarray(noise(64, 64, 3)), "JPEG")[:-2000], "damaged"),
    "truncated WebP": (file(Image.fromarray(noise(64, 64, 3)), "WEBP")[:-2000], "damaged"),
    "only a signature": (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged"),
    "a JPEG's head before a GIF": (b"\xff\xd8\xff" + file(STILL, "GIF"), "damaged"),
    "no width": (png_of(0, 8, zlib.compress(b"")), "damaged"),
    "bomb": (png_of(30_000, 30_000, zlib.compress(bytes(10_000_000))), "more than 1000000 pixels"),
    "bomb beyond Pillow's own limit": (png_of(200_000, 200_000, b""), "more than 1000000 pixels"),
    "text that swells": (
        png_of(8, 8, b"", chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20)))),
        "damaged",
    ),
    "too many bytes": (file(STILL) + bytes(1 << 20), "too large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    data, why = REFUSED[name]
    assert why in refusal(data)


def test_a_file_whose_data_swells_is_decoded_to_its_size_only():
    """The header says 8 × 8, the data would be 100 MB."""
    got = decode(png_of(8, 8, zlib.compress(bytes(100 << 20))), IMAGE)
    assert pixels(got.png).shape == (8, 8, 3)


SEEDS = [file(with_alpha()[0]), file(STILL, "JPEG"), file(with_alpha()[0], "WEBP"), file(STILL.convert("P"))]


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8))
@settings(max_examples=300)
def test_whatever_is_sent_is_a_picture_or_refused(data, changes):
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    for how in (EDITED, MASK):
        with suppress(BadPicture):
            assert isinstance(decode(bytes(changed), how), InputPicture)
