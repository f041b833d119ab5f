"""What a server prepares for before it serves: the largest picture, whatever its shape."""

from __future__ import annotations

import pytest

from stage_server.startup import largest_side, largest_size
from wire.params import ModelInfo


@pytest.mark.parametrize(
    ("multiple", "max_pixels", "size", "side"),
    [
        (32, 1024 * 1536, (1024, 1536), 1248),
        (16, 1 << 20, (1024, 1024), 1024),
        (16, 0, (1024, 1024), 1024),
    ],
)
def test_the_largest_picture(multiple: int, max_pixels: int, size: tuple[int, int], side: int) -> None:
    info = ModelInfo(name="m", key="m@1", family="f", dtype="float32", size_multiple=multiple, max_pixels=max_pixels,
                     default_size=(512, 512))  # fmt: skip
    assert (largest_size(info), largest_side(info)) == (size, side)
