"""What decoding a picture needs, as predicted, and the tiles that follow from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stage_server.engine.activations import SLACK, _Alive, decoding_bytes
from stage_server.engine.base import LoadError
from stage_server.engine.decoding import Decoding, decided
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.settings import InvalidSettings, read_settings
from wire.types import Role

FLOAT = torch.float32


def of_vae(model: str, side: int, tiles: int | None = None) -> tuple[Any, int]:
    """Its class and configuration, latents for a square picture, and the bytes predicted."""
    engine = DiffusersEngine(model)
    files, config = engine._components.files["vae"], engine._components.configs["vae"]
    latents = engine._geometry.latents_of(side)
    nbytes = decoding_bytes(files.type_hint, config, FLOAT, latents, tiles)
    assert nbytes is not None
    return (files.type_hint, config, latents), nbytes


@pytest.mark.parametrize("family", ["tiny-shapes", "qwen-image", "flux2-klein"])
def test_as_much_is_counted_as_decoding_makes(family: str, model_folder: Callable[[str], str]) -> None:
    (kind, config, latents), predicted = of_vae(model_folder(family), 128)
    vae, given = kind.from_config(config).eval(), torch.zeros(latents)
    alive = _Alive([*vae.parameters(), *vae.buffers(), given])
    with torch.no_grad(), alive:
        vae.decode(given, return_dict=False)
    assert int(SLACK * alive.most) == pytest.approx(predicted, rel=0.02)
    assert predicted > given.nbytes


def test_in_tiles_it_hardly_grows_with_the_picture() -> None:
    (_, small), (_, large) = of_vae("tiny-shapes", 512, 128), of_vae("tiny-shapes", 1024, 128)
    assert large < 0.5 * of_vae("tiny-shapes", 1024)[1]
    assert of_vae("tiny-shapes", 128)[1] < small < of_vae("tiny-shapes", 512)[1]
    with pytest.raises(LoadError, match="takes multiples of 64"):
        of_vae("tiny-shapes", 512, 100)


def test_the_whole_if_it_fits_else_the_largest_tiles_that_do() -> None:
    needed = {None: 4000, 1024: 1000, 768: 700, 512: 500, 384: 400, 256: 300}.__getitem__
    assert decided("auto", needed, 4000) == Decoding(None, 4000)
    assert decided("auto", needed, 999) == Decoding(768, 700)
    assert decided("auto", needed, 10) == Decoding(256, 300), "nothing smaller is tried"
    assert decided(512, needed, 4000) == Decoding(512, 500), "as asked"


def test_sides_that_a_vae_does_not_take_are_passed_over() -> None:
    def needed(side: int | None) -> int:
        if side not in (None, 384):
            raise LoadError("multiples of 384")
        return 1000 if side is None else 300

    assert decided("auto", needed, 500) == Decoding(384, 300)

    def has_no_tiles(side: int | None) -> int:
        if side is not None:
            raise LoadError("it has none")
        return 1000

    with pytest.raises(LoadError, match="--vae-tile auto: this VAE has no tiles; leave it out"):
        decided("auto", has_no_tiles, 500)
    with pytest.raises(LoadError, match="is not known beforehand; name a side"):
        decided("auto", lambda _side: None, 500)


def test_what_does_not_fit_is_said_where_nobody_asked_for_tiles(caplog: pytest.LogCaptureFixture) -> None:
    assert decided(None, lambda _side: 3 * 10**9, 2 * 10**9) == Decoding(None, 3 * 10**9)
    assert "need 3.0 GB to be decoded, and 2.0 GB are there beside the weights: --vae-tile auto" in caplog.text


def test_a_small_device_decides_for_tiles_and_has_the_key_of_whoever_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = DiffusersEngine("tiny-shapes")
    assert DiffusersEngine("tiny-shapes", vae_tile="auto").describe().key == whole.describe().key
    monkeypatch.setattr(DiffusersEngine, "memory_bytes", 60_000_000)  # the weights take 32 MB of it
    small = DiffusersEngine("tiny-shapes", vae_tile="auto")
    side = small._components.vae_tile
    assert side is not None
    assert small.describe().key == DiffusersEngine("tiny-shapes", vae_tile=side).describe().key
    assert small.describe().key != whole.describe().key


def test_the_scheduler_hears_what_a_tile_needs() -> None:
    plain, tiled = DiffusersEngine("tiny-shapes").capable(), DiffusersEngine("tiny-shapes", vae_tile=128).capable()
    assert tiled[Role.DECODER].activation_bytes < 0.5 * plain[Role.DECODER].activation_bytes
    assert tiled[Role.DIT].activation_bytes == plain[Role.DIT].activation_bytes


@pytest.mark.parametrize("given", ["small", "32"])
def test_sides_that_cannot_be_are_named(given: str) -> None:
    with pytest.raises(InvalidSettings, match="--vae-tile: "):
        read_settings(["--model", "m", "--role", "dit", "--gateway", "tcp://127.0.0.1:1", "--vae-tile", given])
