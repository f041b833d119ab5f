from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from stage_server.engine.blank_pictures import blank_png
from stage_server.engine.emulated_values import picture_code, prompt_digest
from tests.chaos.pictures import NoPicture, Said, read


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (20, 1000), (1024, 1024)])
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_pixels_say_seed_and_prompt(size: tuple[int, int], seed: int) -> None:
    png = blank_png(*size, picture_code(seed, prompt_digest("a dög")))
    assert read(png) == Said.wanted("a dög", seed, size)
    assert read(png) != Said.wanted("a cat", seed, size)


def test_pixels_outlive_another_encoding() -> None:
    with Image.open(BytesIO(blank_png(64, 64, picture_code(5, prompt_digest("x"))))) as picture:
        bare = BytesIO()
        picture.convert("RGB").save(bare, "webp", lossless=True)
    assert read(bare.getvalue()) == Said.wanted("x", 5, (64, 64))


@pytest.mark.parametrize("data", [b"", b"no picture", blank_png(64, 64), blank_png(64, 64)[:-30]])
def test_what_is_no_coded_picture_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(NoPicture):
        read(data)
