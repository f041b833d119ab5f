"""Pictures that pass through the VAE in tiles: never more than one at once, and nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stage_server.engine import diffusers_engine
from stage_server.engine.alive import Alive
from stage_server.engine.base import LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.tiling import UNIT, DecodedBytes
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


@pytest.mark.parametrize("family", ["tiny-shapes", "flux2-klein", "stable-diffusion-3", "qwen-image"])
def test_what_is_alive_is_predicted_as_it_is(family: str, model_folder: Callable[[str], str]) -> None:
    engine = DiffusersEngine(model_folder(family), vae_tile=TILE)
    predicted = engine._decoded
    assert predicted is not None
    engine.set_roles(frozenset({Role.DECODER}))
    vae, geometry = engine._pipeline.vae, engine._geometry
    frames = (1,) if geometry.video_vae else ()
    latents = torch.zeros(1, geometry.latent_channels, *frames, 16, 16)
    with torch.no_grad(), Alive() as alive:
        vae.disable_tiling()
        vae.decode(latents)
    pixels = (16 * geometry.vae_factor) ** 2
    assert alive.most == pytest.approx(predicted.per_pixel * pixels, rel=0.15)


def test_tiles_are_as_large_as_memory_allows() -> None:
    decoded = DecodedBytes(per_pixel=1000.0, largest=4 << 20)
    assert decoded.side(decoded.whole, 8) is None, "the largest picture fits"
    side = decoded.side(2_000_000_000, 8)
    assert side == 1024
    assert decoded.tiled(side) <= 2_000_000_000 < decoded.tiled(side + UNIT)
    assert decoded.side(0, 8) == UNIT, "the smallest that there are"
    assert decoded.side(0, 128) == 512, "of whole latents, at every quarter"
    assert decoded.tiled(8192) == decoded.whole


def test_devices_of_nearly_the_same_memory_choose_the_same() -> None:
    decoded = DecodedBytes(per_pixel=1540.0, largest=4 << 20)
    assert decoded.side(8_500_000_000, 8) == decoded.side(8_510_000_000, 8)


def test_a_processor_has_no_limit_of_its_own() -> None:
    """So that its pictures are those of servers without the option, under the same key."""
    plain, auto = DiffusersEngine("tiny-shapes"), DiffusersEngine("tiny-shapes", vae_tile="auto")
    assert auto.describe().key == plain.describe().key
    assert auto.capable() == plain.capable()


def test_a_device_chooses_by_its_size_and_the_key_says_what_it_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DiffusersEngine("tiny-shapes").describe().key
    found = {}
    for memory in (1 << 40, 1 << 33, 1 << 32):
        monkeypatch.setattr(DiffusersEngine, "memory_bytes", memory)
        monkeypatch.setattr(diffusers_engine, "has_limit", lambda _: True)
        found[memory] = DiffusersEngine("tiny-shapes", vae_tile="auto")
    assert found[1 << 40].describe().key == plain, "all of its pictures fit"
    small = found[1 << 32]
    side = small._components.vae_tile
    assert side is not None
    assert small.describe().key == DiffusersEngine("tiny-shapes", vae_tile=side).describe().key
    assert small.capable()[Role.DECODER].activation_bytes <= 0.1 * (1 << 32)


def test_the_decoder_announces_what_a_tile_takes() -> None:
    plain, tiled = DiffusersEngine("tiny-shapes").capable(), DiffusersEngine("tiny-shapes", vae_tile=TILE).capable()
    assert tiled[Role.DECODER].activation_bytes < plain[Role.DECODER].activation_bytes / 2
    assert tiled[Role.DIT].activation_bytes == plain[Role.DIT].activation_bytes


def test_what_a_video_takes_in_tiles_is_not_told_by_one_picture(model_folder: Callable[[str], str]) -> None:
    """Frames after the first take several times as much, and all of them stay until the last is there."""
    folder = model_folder("wan")
    plain, tiled = DiffusersEngine(folder).capable(), DiffusersEngine(folder, vae_tile=TILE).capable()
    assert tiled == plain


def test_models_with_other_tiles_have_no_vae_in_common(model_folder: Callable[[str], str]) -> None:
    folder = model_folder("flux2-klein")
    kinds = [DiffusersEngine(folder, vae_tile=side)._components.shareable()["vae"][0] for side in (128, 128, 256)]
    assert kinds[0] == kinds[1] != kinds[2]


def test_a_side_that_does_not_fit_is_refused_with_one_that_does() -> None:
    engine = DiffusersEngine("tiny-shapes", vae_tile=100)
    with pytest.raises(LoadError, match="--vae-tile 100: this VAE takes multiples of 64, 64 for one"):
        engine.set_roles(frozenset({Role.DECODER}))
