"""The stage after the decoder: what it makes, what it holds, and what it refuses. With a tiny upscaler of random
weights, which is a folder like a published one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stage_server.engine.base import BadJob, EngineError, LoadError, StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.upscaler import PictureUpscaler
from stage_server.engine.upscaling import UpscalingEngine
from tests.engine.conftest import over_the_wire
from tests.engine.upscaler_folder import FACTOR, by_transformers_alone, save_upscaler
from wire.params import ImageParams
from wire.types import REQUIRED, Role
from wire.values import Value

PARAMS = ImageParams(prompt="a red circle", width=64, height=96, num_inference_steps=2, seed=3)
UPSCALED = ImageParams(prompt="a red circle", width=64, height=96, num_inference_steps=2, seed=3, upscale=FACTOR)
ONLY = frozenset({Role.UPSCALER})
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_upscaler(tmp_path_factory.mktemp("tiny-upscaler"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> UpscalingEngine:
    made = UpscalingEngine(DiffusersEngine("tiny-shapes"), PictureUpscaler(str(folder), CPU))
    made.set_roles(ONLY)
    return made


def pixels(split: Mapping[Role, DiffusersEngine]) -> dict[str, Value]:
    """What the decoder leaves for the upscaler, as it arrives."""
    inbox: dict[str, dict[str, Value]] = {}
    for role in REQUIRED:
        outputs = split[role].run(StageJob(role, UPSCALED), inbox.get(role, {}), Unwatched())
        for port, values in outputs.items():
            inbox.setdefault(port, {}).update({name: over_the_wire(value) for name, value in values.items()})
    assert "image" not in inbox  # no file was made on the way
    return inbox[Role.UPSCALER]


def test_a_picture_is_the_one_that_the_libraries_make_alone(
    folder: Path,
    engine: UpscalingEngine,
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
    generate: Callable[..., Image.Image],
) -> None:
    split = split_engines("tiny-shapes")
    job, given = StageJob(Role.UPSCALER, UPSCALED), pixels(split)

    first, second = (engine.run(job, given, Unwatched())["image"]["image"] for _ in range(2))

    assert isinstance(first, bytes)
    picture = Image.open(io.BytesIO(first))
    assert picture.size == (64 * FACTOR, 96 * FACTOR)
    assert np.array_equal(np.asarray(picture), by_transformers_alone(folder, generate(split, PARAMS)))
    assert first == second
    assert len(first) <= engine.output_bound(job)


def test_it_is_held_without_anything_of_the_model(engine: UpscalingEngine) -> None:
    assert (engine.roles, engine.inner.roles) == (ONLY, frozenset())
    assert engine.resident_bytes == engine.capable()[Role.UPSCALER].weight_bytes > 0
    assert engine.inner.resident_bytes == 0


def test_the_model_has_the_same_key_with_it_and_says_what_it_is(folder: Path, engine: UpscalingEngine) -> None:
    info = engine.describe()
    assert (info.key, info.name) == (engine.inner.describe().key, "tiny-shapes")
    assert info.upscaler is not None
    assert (info.upscaler.name, info.upscaler.factor) == (folder.name, FACTOR)
    assert tuple(engine.capable()) == (*REQUIRED, Role.UPSCALER)


def test_others_weights_have_another_digest(folder: Path, tmp_path: Path) -> None:
    other = PictureUpscaler(str(save_upscaler(tmp_path, seed=2)), CPU)
    same = PictureUpscaler(str(folder), CPU)
    assert other.info.digest != same.info.digest == PictureUpscaler(str(folder), CPU).info.digest


def test_roles_come_and_go_beside_those_of_the_model(folder: Path) -> None:
    engine = UpscalingEngine(DiffusersEngine("tiny-shapes"), PictureUpscaler(str(folder), CPU))

    both = frozenset({Role.DECODER, Role.UPSCALER})
    engine.set_roles(both)
    assert engine.roles == both
    engine.set_roles(frozenset({Role.DECODER}))
    assert engine.roles == frozenset({Role.DECODER})
    with pytest.raises(EngineError, match="does not hold the role upscaler"):
        engine.prepare(StageJob(Role.UPSCALER, UPSCALED), {})
    engine.close()
    assert engine.roles == frozenset()


def test_an_upscaler_that_cannot_be_loaded_leaves_the_roles_as_they_were(tmp_path: Path) -> None:
    folder = save_upscaler(tmp_path / "upscaler")
    engine = UpscalingEngine(DiffusersEngine("tiny-shapes"), PictureUpscaler(str(folder), CPU))
    engine.set_roles(frozenset({Role.DECODER}))
    weights = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(LoadError, match=r"lacks 1 of its weights, such as .*: they would be random; download it again"):
        engine.set_roles(frozenset({Role.DIT, Role.UPSCALER}))

    assert engine.roles == frozenset({Role.DECODER})


def test_another_factor_is_refused(engine: UpscalingEngine) -> None:
    params = ImageParams(width=64, height=96, upscale=4)
    with pytest.raises(BadJob, match="upscale may be 2 here, not 4"):
        engine.run(StageJob(Role.UPSCALER, params), {}, Unwatched())


def test_a_decoder_that_left_no_pixels_is_named(engine: UpscalingEngine) -> None:
    with pytest.raises(EngineError, match="the decoder left no pixels of three channels"):
        engine.run(StageJob(Role.UPSCALER, UPSCALED), {"image": b"png"}, Unwatched())


def test_what_is_no_upscaler_is_refused_with_the_reason(tmp_path: Path) -> None:
    def opened(source: Path | str) -> PictureUpscaler:
        return PictureUpscaler(str(source), CPU, local_files_only=True)

    with pytest.raises(LoadError, match="neither a folder nor a hub id"):
        opened(tmp_path / "nowhere")
    with pytest.raises(LoadError, match="the upscaler org/model cannot be fetched"):
        opened("org/model")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match=r"has no \.safetensors file"):
        opened(tmp_path)
    enlarging = save_upscaler(tmp_path / "enlarging")
    config = json.loads((enlarging / "config.json").read_text())
    for changed, reason in (
        ({"model_type": "bert"}, "is a model of the type 'bert'; an upscaler is of the type 'swin2sr'"),
        ({"upscale": 1}, "makes 3 channels of 3, 1 times as large"),
        ({"num_channels": 1}, "makes 3 channels of 1, 2 times as large"),
        ({"upsampler": ""}, "2 times as large, by ''; 3 of 3, from 2 to 8 times, by pixelshuffle, "),
    ):
        (enlarging / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(LoadError, match=reason):
            opened(enlarging)
