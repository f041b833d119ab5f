"""What role changes unload can be kept on the host: the same weights come back, within a bound, whatever fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from stage_server.engine.base import LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.weight_cache import NOMINAL_BYTES, WeightCache
from wire.params import ImageParams
from wire.types import Role

ENCODER, DIT, DECODER = (frozenset({role}) for role in Role)
PLENTY = 1 << 30


def module(nbytes: int) -> torch.nn.Module:
    return torch.nn.Linear(nbytes // 4, 1, bias=False)


def test_the_component_given_up_longest_ago_makes_room() -> None:
    cache = WeightCache(1000)
    parts = {name: module(400) for name in "abc"}
    for name, part in parts.items():
        cache.put(name, part)
    assert cache.used == 800
    assert cache.take("a") is None
    assert cache.take("c") is parts["c"]
    assert cache.take("c") is None
    assert cache.used == 400


def test_what_is_larger_than_the_cache_displaces_nothing() -> None:
    cache = WeightCache(1000)
    cache.put("small", module(400))
    cache.put("large", module(2000))
    cache.put("tokenizer", object())
    assert NOMINAL_BYTES > 1000
    assert cache.used == 400


def test_tied_weights_count_once() -> None:
    cache, pair = WeightCache(1000), torch.nn.Sequential(module(400), module(400))
    pair[1].weight = pair[0].weight
    cache.put("pair", pair)
    assert cache.used == 400


def test_a_host_without_room_keeps_nothing_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    cache, part = WeightCache(1000), module(400)
    monkeypatch.setattr(part, "to", full)
    cache.put("part", part)
    assert (cache.used, cache.take("part")) == (0, None)


def test_a_role_comes_back_without_its_files_and_draws_the_same(
    model_folder: Callable[[str], str], generate: Callable[..., Image.Image], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model_folder("z-image"), tmp_path / "copy"))
    engine = DiffusersEngine(str(copy), weight_cache_bytes=PLENTY)
    params = ImageParams(prompt="a star", width=64, height=64, num_inference_steps=2, guidance_scale=3.0)
    engine.set_roles(frozenset(Role))
    before = generate(dict.fromkeys(Role, engine), params)
    engine.set_roles(DIT)
    shutil.rmtree(copy)
    engine.set_roles(ENCODER | DECODER)
    engine.set_roles(frozenset(Role))
    assert generate(dict.fromkeys(Role, engine), params).tobytes() == before.tobytes()


def test_a_failed_load_rolls_back_out_of_the_cache(model_folder: Callable[[str], str], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model_folder("z-image"), tmp_path / "copy"))
    engine = DiffusersEngine(str(copy), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER)
    for name in ("text_encoder", "transformer", "vae"):
        shutil.rmtree(copy / name)
    with pytest.raises(LoadError, match="transformer of copy cannot be loaded"):
        engine.set_roles(DIT)
    assert engine.roles == ENCODER
    assert engine._components.resident >= {"text_encoder", "vae"}
    assert engine._components._cache.used == 0


def test_a_limit_is_kept_and_closing_frees_all(model_folder: Callable[[str], str]) -> None:
    engine = DiffusersEngine(model_folder("z-image"), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER)
    engine.set_roles(DIT)
    assert 0 < engine._components._cache.used <= PLENTY
    engine.close()
    assert engine._components._cache.used == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_kept_leaves_the_device(generate: Callable[..., Image.Image]) -> None:
    engine = DiffusersEngine("tiny-shapes", device="cuda:0", dtype="bfloat16", weight_cache_bytes=PLENTY)
    params = ImageParams(prompt="a red circle", width=64, height=64, num_inference_steps=2)
    engine.set_roles(frozenset(Role))
    before = generate(dict.fromkeys(Role, engine), params)
    held = torch.cuda.memory_allocated()
    engine.set_roles(ENCODER)
    weights = engine.capable()[Role.DIT].weight_bytes
    assert torch.cuda.memory_allocated() < held - 0.9 * weights
    assert engine._components._cache.used > 0.9 * weights
    engine.set_roles(frozenset(Role))
    assert generate(dict.fromkeys(Role, engine), params).tobytes() == before.tobytes()
