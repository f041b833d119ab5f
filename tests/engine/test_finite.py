"""NaN and infinity: seen in every component, at the warm-up where they show there, and never turned into a picture."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stage_server.engine.base import LoadError, NonFinite, StageJob, WrongSize
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.finite import FiniteCheck
from stage_server.engine.tensors import tensor_to_wire
from wire.params import ImageParams
from wire.types import Role
from wire.values import Value

FAMILIES = ["z-image", "flux", "flux2-klein", "stable-diffusion-3", "stable-diffusion-xl", "qwen-image"]
NAN, INF = float("nan"), float("inf")
SMALL = {"width": 64, "height": 64, "num_inference_steps": 1}

Engines = Callable[[str], Mapping[Role, DiffusersEngine]]


@pytest.fixture
def copied_model(tmp_path: Path, model_folder: Callable[[str], str]) -> Path:
    return Path(shutil.copytree(model_folder("z-image"), tmp_path / "copy"))


def poison(folder: Path, component: str, weight: str, rows: slice | int = slice(None)) -> None:
    """Fill a weight, or some of its rows, with NaN."""
    (file,) = (folder / component).glob("*.safetensors")
    weights = load_file(file)
    weights[weight][rows] = NAN
    save_file(weights, file, {"format": "pt"})


def component(engine: DiffusersEngine, name: str) -> torch.nn.Module:
    found = getattr(engine._pipeline, name)
    assert isinstance(found, torch.nn.Module)
    return found


@pytest.mark.parametrize(
    ("role", "name", "weight", "output"),
    [
        (Role.ENCODER, "text_encoder", "embed_tokens.weight", "prompt_embeds"),
        (Role.DIT, "transformer", "layers.1.feed_forward.w2.weight", "latents"),
        (Role.DECODER, "vae", "decoder.conv_in.weight", "picture"),
    ],
)
def test_weights_with_nan_fail_the_warm_up(role: Role, name: str, weight: str, output: str, copied_model: Path) -> None:
    poison(copied_model, name, weight)
    engine = DiffusersEngine(str(copied_model))
    with pytest.raises(LoadError) as caught:
        engine.set_roles(frozenset({role}))
    assert f"cannot run the role {role} here: the {role}'s {output} holds NaN, computed in float32" in str(caught.value)
    assert "the model's weights are damaged: download them again" in str(caught.value)
    assert engine.roles == frozenset()


@pytest.mark.parametrize(
    ("role", "name", "weight"),
    [(Role.ENCODER, "text_encoder", "model.embed_tokens.weight"), (Role.DECODER, "vae", "decoder.conv_in.weight")],
)
def test_a_model_that_needs_a_picture_is_warmed_up_with_one(
    role: Role, name: str, weight: str, tmp_path: Path, model_folder: Callable[[str], str]
) -> None:
    copied = Path(shutil.copytree(model_folder("qwen-image-edit"), tmp_path / "copy"))
    poison(copied, name, weight)
    with pytest.raises(LoadError, match=f"cannot run the role {role} here"):
        DiffusersEngine(str(copied)).set_roles(frozenset({role}))


def test_an_embedding_with_nan_fails_the_prompts_that_read_it(copied_model: Path, steps: type) -> None:
    """The warm-up does not: its prompt has no such token."""
    engine = DiffusersEngine(str(copied_model))
    engine.set_roles(frozenset({Role.ENCODER}))
    tokenizer = engine._pipeline.tokenizer
    rare = set(tokenizer("purple").input_ids) - set(tokenizer("warm up user assistant a star").input_ids)
    poison(copied_model, "text_encoder", "embed_tokens.weight", min(rare))

    engine = DiffusersEngine(str(copied_model))
    engine.set_roles(frozenset({Role.ENCODER}))

    with pytest.raises(NonFinite, match="the encoder's prompt_embeds holds NaN"):
        engine.run(StageJob(Role.ENCODER, ImageParams(prompt="purple", **SMALL)), {}, steps())
    engine.run(StageJob(Role.ENCODER, ImageParams(prompt="a star", **SMALL)), {}, steps())


def test_a_vae_that_encodes_nan_fails_requests_with_a_picture(copied_model: Path, steps: type, png: bytes) -> None:
    poison(copied_model, "vae", "encoder.conv_in.weight")
    engine = DiffusersEngine(str(copied_model))
    engine.set_roles(frozenset({Role.ENCODER}))
    edit = ImageParams(workflow="image2image", prompt="a star", strength=1.0, **SMALL)
    with pytest.raises(NonFinite, match="the encoder's image_latents holds NaN"):
        engine.run(StageJob(Role.ENCODER, edit, {"image": png}), {}, steps())


@pytest.mark.parametrize("bad", [NAN, INF])
def test_latents_that_are_not_finite_are_not_published(
    bad: float, model_folder: Callable[[str], str], steps: type
) -> None:
    """As if the weights went bad after the warm-up."""
    engine = DiffusersEngine(model_folder("z-image"), dtype="bfloat16")
    engine.set_roles(frozenset({Role.ENCODER, Role.DIT}))
    params = ImageParams(prompt="a star", **SMALL)
    outputs = engine.run(StageJob(Role.ENCODER, params), {}, steps())
    next(component(engine, "transformer").parameters()).data.fill_(bad)
    with pytest.raises(NonFinite, match=r"the dit's latents holds .*, computed in bfloat16; start .* --dtype float32"):
        engine.run(StageJob(Role.DIT, params), outputs["dit"], steps())


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoded_picture_that_is_not_finite_is_no_picture(
    family: str, model_folder: Callable[[str], str], steps: type
) -> None:
    """Every family's blocks are watched where they decode. Rounded to 8 bits, NaN is black."""
    engine = DiffusersEngine(model_folder(family))
    engine.set_roles(frozenset({Role.DECODER}))
    for weight in component(engine, "vae").get_submodule("decoder").parameters():
        weight.data.fill_(NAN)
    job = StageJob(Role.DECODER, ImageParams(prompt="a star", **SMALL))
    with pytest.raises(NonFinite, match="the decoder's picture holds NaN"):
        engine.run(job, {"latents": latents(engine, 64)}, steps())


def test_a_picture_of_another_size_is_refused(split_engines: Engines, steps: type) -> None:
    decoder = split_engines("tiny-shapes")[Role.DECODER]
    inputs = {"latents": latents(decoder, 96)}
    asked = ImageParams(prompt="a star", **SMALL)
    with pytest.raises(WrongSize, match="the picture is 96x96, 64x64 was asked for"):
        decoder.run(StageJob(Role.DECODER, asked), inputs, steps())


def test_a_model_chooses_the_size_that_nobody_names(split_engines: Engines, steps: type) -> None:
    decoder = split_engines("tiny-shapes")[Role.DECODER]
    outputs = decoder.run(
        StageJob(Role.DECODER, ImageParams(prompt="a star")), {"latents": latents(decoder, 96)}, steps()
    )
    assert (outputs["image"]["width"], outputs["image"]["height"]) == (96, 96)


def latents(engine: DiffusersEngine, side: int) -> Value:
    return tensor_to_wire("latents", engine._geometry.stand_in_latents(side, side, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [0, 517, 999])
def test_one_element_is_enough(dtype: torch.dtype, bad: float, at: int) -> None:
    tensor = torch.ones(1000, dtype=dtype)
    tensor[at] = bad
    check = FiniteCheck(Role.DIT, "float16")
    check.look("latents", tensor.reshape(10, 100))
    with pytest.raises(NonFinite, match=r"the dit's latents holds .* in float16; .* --dtype bfloat16"):
        check.settle()


@pytest.mark.parametrize(
    ("name", "value", "is_fine"),
    [
        ("attention_mask", torch.tensor([0.0, -INF]), True),
        ("attention_mask", torch.tensor([0.0, INF]), False),
        ("attention_mask", torch.tensor([-INF, NAN]), False),
        ("masked_image_latents", torch.tensor([0.0, -INF]), False),
        ("kwargs", {"mask": torch.tensor([0.0, -INF])}, True),
        ("prompt_embeds", [torch.zeros(2), torch.tensor([NAN])], False),
        ("prompt_embeds_mask", torch.ones(3, dtype=torch.int64), True),
        ("latents", torch.full((4,), torch.finfo(torch.float32).max), True),
        ("latents", torch.zeros(0), True),
        ("text", "nan", True),
    ],
)
def test_what_counts_as_finite(name: str, value: Any, is_fine: bool) -> None:
    check = FiniteCheck(Role.ENCODER, "float32")
    check.look(name, value)
    if is_fine:
        check.settle()
    else:
        with pytest.raises(NonFinite):
            check.settle()
