"""What two models of one process have in common is held once, and each draws what it draws alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from threading import Event, Thread, current_thread

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from stage_server import startup
from stage_server.engine.base import LoadError
from stage_server.engine.common import CommonComponents, Holder
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.stubs import ComponentStub
from stage_server.settings import Settings
from wire.params import ImageParams
from wire.types import REQUIRED, Role

ALL = frozenset(REQUIRED)
ENCODER = frozenset({Role.ENCODER})
DIT = frozenset({Role.DIT})
PLENTY = 1 << 30
PARAMS = ImageParams(prompt="a star", width=64, height=64, num_inference_steps=2, guidance_scale=3.0, seed=5)
Generate = Callable[..., Image.Image]


def change(folder: Path, *parts: str) -> None:
    """Other weights in files of the same size."""
    for part in parts:
        (weights,) = (folder / part).glob("*.safetensors")
        tensors = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
        save_file(tensors, weights, {"format": "pt"})


@pytest.fixture
def other(model_folder: Callable[[str], str], tmp_path: Path) -> Path:
    """A model with the text encoder of the first, and a transformer and VAE of its own."""
    folder = Path(shutil.copytree(model_folder("z-image"), tmp_path / "other"))
    change(folder, "transformer", "vae")
    return folder


@pytest.fixture
def both(model_folder: Callable[[str], str], other: Path) -> Iterator[list[DiffusersEngine]]:
    engines = [DiffusersEngine(each, weight_cache_bytes=PLENTY) for each in (model_folder("z-image"), str(other))]
    DiffusersEngine.acquaint(engines)
    yield engines
    for engine in engines:
        engine.close()


def drawn(generate: Generate, engine: DiffusersEngine) -> bytes:
    return generate(dict.fromkeys(REQUIRED, engine), PARAMS).tobytes()


def test_both_hold_one_text_encoder_and_draw_what_each_draws_alone(
    both: list[DiffusersEngine], generate: Generate, model_folder: Callable[[str], str], other: Path
) -> None:
    pictures = []
    for folder in (model_folder("z-image"), str(other)):
        engine = DiffusersEngine(folder)
        engine.set_roles(ALL)
        pictures.append(drawn(generate, engine))
        whole = engine.resident_bytes
    for engine in both:
        engine.set_roles(ALL)
    first, second = (engine._pipeline for engine in both)
    assert first.text_encoder is second.text_encoder
    assert first.vae is not second.vae
    common = both[0]._components.nbytes("text_encoder")
    assert sum(engine.resident_bytes for engine in both) == 2 * whole - common
    assert [drawn(generate, engine) for engine in both] == pictures
    assert len(set(pictures)) == 2


def test_it_stays_until_nobody_holds_it(both: list[DiffusersEngine], generate: Generate) -> None:
    first, second = both
    first.set_roles(ALL)
    picture = drawn(generate, first)
    second.set_roles(ENCODER)
    common = second._components.nbytes("text_encoder")
    alone = sum(map(second._components.nbytes, second._components.resident))
    assert second.resident_bytes == alone - common, "it counts for the first"
    second.set_roles(frozenset())
    assert drawn(generate, first) == picture
    second.set_roles(ENCODER)
    first.set_roles(frozenset())
    assert second.resident_bytes == alone
    assert isinstance(first._pipeline.text_encoder, ComponentStub)
    first.set_roles(ALL)
    assert first._pipeline.text_encoder is second._pipeline.text_encoder
    assert drawn(generate, first) == picture
    for engine in both:
        engine.set_roles(frozenset())
    first.set_roles(ALL)
    assert drawn(generate, first) == picture


def test_it_is_warm_for_whoever_lacks_it(both: list[DiffusersEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = both
    assert second.warm == frozenset()
    first.set_roles(ENCODER)
    monkeypatch.setattr(second._held, "_room", lambda: 0)
    assert second._components.bytes_to_come("text_encoder") == 0
    read = second._components._read

    def unread(name: str, files: object) -> object:
        assert name != "text_encoder"
        return read(name, files)  # type: ignore[arg-type]

    monkeypatch.setattr(second._components, "_read", unread)
    second.preload(ENCODER)
    second.set_roles(ENCODER)


def test_in_host_memory_it_waits_once_and_within_one_limit(
    both: list[DiffusersEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = both
    cache = first._components.cache
    first.set_roles(ALL)
    first.set_roles(frozenset())
    alone = cache.used

    def unread(name: str, files: object) -> object:
        assert name != "text_encoder"
        return read(name, files)  # type: ignore[arg-type]

    read = second._components._read
    monkeypatch.setattr(second._components, "_read", unread)
    second.set_roles(ALL)
    assert second._components.cache is cache
    second.set_roles(frozenset())
    assert cache.used == 2 * alone - first._components.nbytes("text_encoder")
    cache._limit = cache.used
    first.set_roles(ALL)
    second.set_roles(ALL)
    first.set_roles(frozenset())
    assert first.warm == ALL, "the text encoder is the other's still"
    second.set_roles(frozenset())
    assert (first.warm, second.warm) == (ALL, ALL)


def test_one_that_closes_takes_nothing_away_from_the_other(both: list[DiffusersEngine]) -> None:
    first, second = both
    for engine in both:
        engine.set_roles(ALL)
    first.set_roles(DIT)
    second.close()
    assert first.warm == ALL - DIT - ENCODER, "nobody holds the text encoder any more, and nobody may keep it"
    first.close()
    assert first._components.cache.used == 0


def test_what_two_want_at_once_is_read_once(both: list[DiffusersEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = both
    key, common = first._components._keys["text_encoder"], first._components._common
    waiting, moving, reads = Event(), common.moving, list[str]()
    other = Thread(target=second.set_roles, args=(ENCODER,))

    def noted(asked: str | None) -> AbstractContextManager[object]:
        if asked == key and current_thread() is other:
            waiting.set()
        return moving(asked)

    def slow(engine: DiffusersEngine, read: Callable[..., object], name: str, files: object) -> object:
        if name == "text_encoder":
            reads.append(name)
            if engine is first:
                other.start()
                assert waiting.wait(30.0)
        return read(name, files)

    monkeypatch.setattr(common, "moving", noted)
    for engine in both:
        monkeypatch.setattr(engine._components, "_read", partial(slow, engine, engine._components._read))
    first.preload(ENCODER)
    other.join(60.0)
    assert (reads, second.roles) == (["text_encoder"], ENCODER)


def test_a_failed_change_gives_it_up(both: list[DiffusersEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = both
    first.set_roles(ENCODER)

    def refuse(*_: object) -> None:
        raise LoadError("it does not run")

    monkeypatch.setattr(second._held, "_warm_up", refuse)
    with pytest.raises(LoadError, match="does not run"):
        second.set_roles(ENCODER)
    monkeypatch.undo()
    first.set_roles(frozenset())
    assert not any(first._components._is_elsewhere(name) for name in first._components.files)


def test_both_say_which_bytes_they_have_in_common(both: list[DiffusersEngine]) -> None:
    first, second = (engine.capable() for engine in both)
    assert first[Role.ENCODER].common_bytes == second[Role.ENCODER].common_bytes
    assert sum(first[Role.ENCODER].common_bytes.values()) == both[0]._components.nbytes("text_encoder")
    assert not first[Role.DIT].common_bytes


@pytest.mark.parametrize("unlike", ["weights", "configuration", "quantised", "adapted"])
def test_what_is_not_equal_or_may_change_is_not_shared(
    unlike: str, model_folder: Callable[[str], str], other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = other / "text_encoder" / "config.json"
    if unlike == "weights":
        change(other, "text_encoder")
    elif unlike == "configuration":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    engines = [DiffusersEngine(model_folder("z-image")), DiffusersEngine(str(other))]
    components = engines[1]._components
    if unlike == "quantised":
        for engine in engines:
            configs = engine._components.configs
            quantised = {**configs["text_encoder"], "quantization_config": {"quant_method": "bitsandbytes"}}
            monkeypatch.setattr(engine._components, "configs", {**configs, "text_encoder": quantised})
    elif unlike == "adapted":
        components.adapted = frozenset({"text_encoder"})
    DiffusersEngine.acquaint(engines)
    assert not components.common_bytes
    assert not engines[0]._components.common_bytes


def test_a_process_of_two_models_acquaints_its_engines(model_folder: Callable[[str], str], other: Path) -> None:
    options = {"role": "encoder", "gateway": "tcp://127.0.0.1:1", "may_load": [f"other={other}"]}
    settings = Settings(model=model_folder("z-image"), **options).of_each_model()  # type: ignore[arg-type]
    engines = [startup.make_engine(each) for each in settings]
    startup._acquaint(engines, settings)
    assert all(engine.capable()[Role.ENCODER].common_bytes for engine in engines)


def test_the_first_holder_counts_and_the_last_one_gives_it_up() -> None:
    common, one, other = CommonComponents(), Holder(1, "text_encoder"), Holder(2, "text_encoder_2")
    assert common.take("key", one) is None
    common.hold("key", "mine", one)
    assert common.take("key", other) == "mine"
    assert common.counts_for("key", one)
    assert not common.give_up("key", one)
    assert common.counts_for("key", other)
    assert common.give_up("key", other)
    assert not common.is_held("key")
