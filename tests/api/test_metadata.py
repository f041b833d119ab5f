"""Text inside picture files: read back by Pillow, and not a pixel changed."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from gateway.api.generation import plan
from gateway.api.metadata import describe, embed
from gateway.api.schema import GenerationBody
from gateway.settings import Settings
from wire.params import ModelInfo

TEXT = "ein süßer Bär 🐻\nSteps: 5"
MODEL = ModelInfo(name="m", key="m@1", family="fake", dtype="float32", default_size=(64, 32), default_guidance=3.5)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 80).convert(mode)


def read(picture: Image.Image) -> str:
    if picture.format == "PNG":
        return picture.info["parameters"]
    value = picture.getexif().get_ifd(0x8769)[0x9286]
    return value.removeprefix(b"UNICODE\0").decode("utf-16-be")


@pytest.mark.parametrize("size", [(64, 48), (17, 301), (1024, 16)])
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("JPEG", "RGB", {"quality": 60}),
        ("JPEG", "RGB", {"quality": 100, "progressive": True}),
        ("WEBP", "RGB", {"quality": 60}),
        ("WEBP", "RGB", {"quality": 100, "lossless": True}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGBA", {"quality": 60}),  # in the extended form already
    ],
)
def test_the_text_is_there_and_the_pixels_are_the_same(
    kind: str, mode: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    picture = noise(*size, mode)
    if mode == "RGBA":
        picture.putalpha(noise(*size, "L"))
    plain = saved(picture, kind, **options)
    told = Image.open(io.BytesIO(embed(plain, TEXT)))
    assert (told.format, told.size, read(told)) == (kind, size, TEXT)
    before = Image.open(io.BytesIO(plain))
    assert (told.mode, told.tobytes()) == (before.mode, before.tobytes())


def test_other_data_is_left_alone() -> None:
    assert embed(b"GIF89a", TEXT) == b"GIF89a"


def test_the_longest_prompts_fit_into_a_jpeg() -> None:
    body = GenerationBody(prompt="🐻" * 32_000, negative_prompt="ß" * 32_000, seed=7)
    text = describe(plan(body, MODEL, Settings()), 0, with_prompt=True)
    told = Image.open(io.BytesIO(embed(saved(noise(64, 32), "JPEG"), text)))
    assert read(told) == text
    assert text.endswith("\nCFG scale: 3.5, Seed: 7, Size: 64x32, Model: m")
    told.load()
