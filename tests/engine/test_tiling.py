"""Pictures that pass through the VAE in tiles: never more than one at once, and nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stage_server.engine.base import LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import REQUIRED, Role

PARAMS = ImageParams(prompt="a blue star on white", width=256, height=192, num_inference_steps=2, seed=3)
TILE = 128


def picture(generate: Callable[..., Image.Image], engine: DiffusersEngine, params: ImageParams = PARAMS) -> Any:
    engine.set_roles(frozenset(REQUIRED))
    return np.asarray(generate(dict.fromkeys(REQUIRED, engine), params)).astype(int)


def watched(engine: DiffusersEngine) -> list[tuple[int, ...]]:
    """Shapes that the decoder's network is given, of engines that hold it."""
    seen: list[tuple[int, ...]] = []
    engine._pipeline.vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    return seen


def test_a_large_picture_is_decoded_in_tiles(generate: Callable[..., Image.Image]) -> None:
    whole = picture(generate, DiffusersEngine("tiny-shapes"))
    engine = DiffusersEngine("tiny-shapes", vae_tile=TILE)
    engine.set_roles(frozenset(REQUIRED))
    seen = watched(engine)
    tiled = picture(generate, engine)
    assert len(seen) == 6, "every 96 pixels one begins"
    assert max(max(shape[-2:]) for shape in seen) * 16 == TILE
    assert {shape[0] for shape in seen} == {1}
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).mean() < 4


def test_a_small_picture_is_the_same_to_the_bit(generate: Callable[..., Image.Image]) -> None:
    small = ImageParams(prompt="a blue star", width=TILE, height=TILE, num_inference_steps=2, seed=3)
    pictures = [picture(generate, DiffusersEngine("tiny-shapes", vae_tile=side), small) for side in (None, TILE)]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("family", ["qwen-image", "flux2-klein"])
def test_other_autoencoders(
    family: str, model_folder: Callable[[str], str], generate: Callable[..., Image.Image]
) -> None:
    params = ImageParams(prompt="a star", width=192, height=128, num_inference_steps=2, seed=3)
    whole, tiled = (picture(generate, DiffusersEngine(model_folder(family), vae_tile=t), params) for t in (None, 96))
    assert tiled.shape == whole.shape
    assert not np.array_equal(tiled, whole)


def test_it_is_part_of_the_key() -> None:
    keys: Mapping[int | None, str] = {
        side: DiffusersEngine("tiny-shapes", vae_tile=side).describe().key for side in (None, 128, 256)
    }
    assert len(set(keys.values())) == 3


def test_a_side_that_does_not_fit_is_refused_with_one_that_does() -> None:
    engine = DiffusersEngine("tiny-shapes", vae_tile=100)
    with pytest.raises(LoadError, match="--vae-tile 100: this VAE takes multiples of 64, 64 for one"):
        engine.set_roles(frozenset({Role.DECODER}))
