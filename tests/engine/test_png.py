"""PNG files: every pixel comes back, from Pillow's decoder as from any; the same pixels give the same file."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stage_server.engine import pictures, png
from stage_server.engine.png import encode_png

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}

sides = st.integers(1, 67)
modes = st.sampled_from(sorted(CHANNELS))


def noise(mode: str, width: int, height: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, CHANNELS[mode]), np.uint8)
    return Image.fromarray(values if CHANNELS[mode] > 1 else values[..., 0])


def decoded(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@given(modes, sides, sides, st.integers(0, 2**32))
def test_nothing_is_lost(mode: str, width: int, height: int, seed: int) -> None:
    picture = noise(mode, width, height, seed)
    read = decoded(encode_png(picture))
    assert (read.mode, read.size) == (mode, (width, height))
    assert read.tobytes() == picture.tobytes()


@given(modes, sides, sides, st.integers(0, 255))
def test_nothing_is_lost_of_one_colour(mode: str, width: int, height: int, value: int) -> None:
    picture = Image.new(mode, (width, height), (value,) * CHANNELS[mode] if mode != "L" else value)
    assert decoded(encode_png(picture)).tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["1", "P", "I;16"])
def test_other_modes_cross_as_they_are(mode: str) -> None:
    picture = Image.linear_gradient("L").convert("I;16" if mode == "I;16" else mode)
    read = decoded(encode_png(picture))
    assert (read.mode, read.tobytes()) == (picture.mode, picture.tobytes())


def test_noise_fits_the_bound_that_is_reserved_for_a_picture() -> None:
    for size in ((1, 1), (1, 4096), (4096, 1), (512, 512)):
        assert len(encode_png(noise("RGB", *size, seed=1))) <= pictures.encoded_bound(*size)


def test_without_isal_zlib_writes_the_same_pixels_and_another_key() -> None:
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "from PIL import Image; from stage_server.engine import pictures, png\n"
        "sys.stdout.write(png.COMPRESSOR + ' ' + pictures.encoders() + ' ')\n"
        "sys.stdout.write(png.encode_png(Image.linear_gradient('L').convert('RGB')).hex())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    compressor, key, data = run.stdout.split(" ")
    assert compressor == "zlib"
    assert decoded(bytes.fromhex(data)).tobytes() == Image.linear_gradient("L").convert("RGB").tobytes()
    assert png.COMPRESSOR == "igzip", "isal is in constraints.txt, so it is installed for tests"
    assert key != pictures.encoders()


def test_the_key_of_the_encoders_is_that_of_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    here = pictures.encoders()
    pictures.encoders.cache_clear()
    assert pictures.encoders() == here
    monkeypatch.setattr(pictures, "_WEBP_METHOD", 4)
    pictures.encoders.cache_clear()
    assert pictures.encoders() != here
    pictures.encoders.cache_clear()
