"""What role changes unload can be kept on the host: the same weights come back, within a bound, whatever fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from stage_server.engine.base import LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.weight_cache import (
    NOMINAL_BYTES,
    SPARED_BYTES,
    HostCopy,
    WeightCache,
    free_bytes,
    host_copy,
)
from wire.params import ImageParams
from wire.types import REQUIRED, Role

ENCODER, DIT, DECODER = (frozenset({role}) for role in REQUIRED)
PLENTY = 1 << 30


def module(nbytes: int) -> torch.nn.Module:
    return torch.nn.Linear(nbytes // 4, 1, bias=False)


def on_host(component: object) -> HostCopy:
    return host_copy(component, torch.device("cpu"), pinned=False)


def test_the_component_not_used_for_longest_makes_room() -> None:
    cache = WeightCache(1000)
    parts = {name: on_host(module(400)) for name in "abc"}
    assert cache.put("a", parts["a"])
    assert cache.put("b", parts["b"])
    assert cache.get("a") is parts["a"]
    assert cache.put("c", parts["c"])
    assert cache.used == 800
    assert [name for name in "abc" if cache.holds([name])] == ["a", "c"]
    cache.forget("a")
    assert (cache.get("a"), cache.used) == (None, 400)


def test_what_is_larger_than_the_cache_displaces_nothing() -> None:
    cache = WeightCache(1000)
    assert cache.put("small", on_host(module(400)))
    assert not cache.put("large", on_host(module(2000)))
    assert not cache.put("tokenizer", on_host(object()))
    assert NOMINAL_BYTES > 1000
    assert cache.used == 400


def test_what_is_asked_for_together_does_not_displace_each_other() -> None:
    cache = WeightCache(1000, free=lambda: 1 << 40)
    for name in ("old", "wanted"):
        cache.put(name, on_host(module(400)))
    assert not cache.make_room(700, spared=("wanted", "coming"))
    assert cache.used == 800
    assert cache.make_room(600, spared=("wanted", "coming"))
    assert (cache.holds(["wanted"]), cache.used) == (True, 400)


def test_a_host_without_room_reads_nothing_ahead_whatever_the_limit() -> None:
    free = SPARED_BYTES + 300
    cache = WeightCache(1000, free=lambda: free)
    assert cache.make_room(300)
    assert not cache.make_room(400)


def test_tied_weights_count_once() -> None:
    pair = torch.nn.Sequential(module(400), module(400))
    pair[1].weight = pair[0].weight
    assert on_host(pair).nbytes == 400


def test_the_system_tells_how_much_is_free() -> None:
    assert 0 < free_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_role_comes_back_without_its_files_and_draws_the_same(
    model_folder: Callable[[str], str], generate: Callable[..., Image.Image], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model_folder("z-image"), tmp_path / "copy"))
    engine = DiffusersEngine(str(copy), weight_cache_bytes=PLENTY)
    params = ImageParams(prompt="a star", width=64, height=64, num_inference_steps=2, guidance_scale=3.0)
    engine.set_roles(frozenset(REQUIRED))
    before = generate(dict.fromkeys(REQUIRED, engine), params)
    engine.set_roles(DIT)
    shutil.rmtree(copy)
    engine.set_roles(ENCODER | DECODER)
    engine.set_roles(frozenset(REQUIRED))
    assert generate(dict.fromkeys(REQUIRED, engine), params).tobytes() == before.tobytes()


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
    assert engine._components.cache.used == 0


def test_a_limit_is_kept_and_closing_frees_all(model_folder: Callable[[str], str]) -> None:
    engine = DiffusersEngine(model_folder("z-image"), weight_cache_bytes=PLENTY)
    engine.set_roles(ENCODER)
    engine.set_roles(DIT)
    assert 0 < engine._components.cache.used <= PLENTY
    engine.close()
    assert engine._components.cache.used == 0


def test_what_came_is_not_copied_over_while_a_job_may_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that are cast for each call, as in the format float8-storage: copies have a stream of their own."""
    jobs, read_on = object(), list[tuple[int, object]]()
    copies = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: copies)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: jobs)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda data, on: read_on.append((data.data_ptr(), on)))
    part = torch.nn.Linear(4, 4)
    pairs = tuple((tensor, tensor.data.clone()) for tensor in part.parameters())
    HostCopy(part, 80, pairs).to_device(torch.device("cpu"))
    assert read_on == [(tensor.data_ptr(), jobs) for tensor in part.parameters()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_kept_leaves_the_device(generate: Callable[..., Image.Image]) -> None:
    engine = DiffusersEngine("tiny-shapes", device="cuda:0", dtype="bfloat16", weight_cache_bytes=PLENTY)
    params = ImageParams(prompt="a red circle", width=64, height=64, num_inference_steps=2)
    engine.set_roles(frozenset(REQUIRED))
    before = generate(dict.fromkeys(REQUIRED, engine), params)
    held = torch.cuda.memory_allocated()
    engine.set_roles(ENCODER)
    weights = engine.capable()[Role.DIT].weight_bytes
    assert torch.cuda.memory_allocated() < held - 0.9 * weights
    assert engine._components.cache.used > 0.9 * weights
    engine.set_roles(frozenset(REQUIRED))
    assert generate(dict.fromkeys(REQUIRED, engine), params).tobytes() == before.tobytes()
