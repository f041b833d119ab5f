"""A role's weights: only its own, loaded and unloaded as one, rolled back when loading fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from stage_server.engine.base import EngineError, LoadError, StageJob
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.stubs import ComponentStub
from wire.params import ImageParams
from wire.types import REQUIRED, Role

ENCODER, DIT, DECODER = (frozenset({role}) for role in REQUIRED)

OWN: Mapping[str, Mapping[Role, set[str]]] = {
    "z-image": {Role.ENCODER: {"text_encoder", "vae"}, Role.DIT: {"transformer"}, Role.DECODER: {"vae"}},
    "flux": {
        Role.ENCODER: {"text_encoder", "text_encoder_2", "vae"},
        Role.DIT: {"transformer"},
        Role.DECODER: {"vae"},
    },
    "flux2-klein": {Role.ENCODER: {"text_encoder", "vae"}, Role.DIT: {"transformer"}, Role.DECODER: {"vae"}},
    "stable-diffusion-3": {
        Role.ENCODER: {"text_encoder", "text_encoder_2", "vae"},
        Role.DIT: {"transformer"},
        Role.DECODER: {"vae"},
    },
    "stable-diffusion-xl": {
        Role.ENCODER: {"text_encoder", "text_encoder_2", "vae"},
        Role.DIT: {"unet"},
        Role.DECODER: {"vae"},
    },
    "qwen-image": {Role.ENCODER: {"text_encoder", "vae"}, Role.DIT: {"transformer"}, Role.DECODER: {"vae"}},
}


def modules(engine: DiffusersEngine) -> dict[str, torch.nn.Module]:
    components = engine._pipeline.components.items()
    return {name: component for name, component in components if isinstance(component, torch.nn.Module)}


@pytest.fixture
def copied_model(tmp_path: Path, model_folder: Callable[[str], str]) -> Path:
    return Path(shutil.copytree(model_folder("z-image"), tmp_path / "copy"))


@pytest.mark.parametrize("family", OWN)
def test_each_role_holds_only_its_own_parameters(
    family: str, split_engines: Callable[[str], Mapping[Role, DiffusersEngine]]
) -> None:
    for role, engine in split_engines(family).items():
        held = modules(engine)
        assert set(held) == OWN[family][role]
        tensors = {t.data_ptr(): t.nbytes for module in held.values() for t in module.state_dict().values()}
        held_bytes = sum(tensors.values())  # tied weights count once
        assert engine.capable()[role].weight_bytes == pytest.approx(held_bytes, rel=0.05)


def test_weights_are_counted_in_the_dtype_they_are_loaded_with() -> None:
    whole = DiffusersEngine("tiny-shapes").capable()
    half = DiffusersEngine("tiny-shapes", dtype="bfloat16").capable()
    assert all(half[role].weight_bytes * 2 == whole[role].weight_bytes for role in REQUIRED)


def test_sharded_weights_are_counted_over_all_shards(copied_model: Path) -> None:
    whole = DiffusersEngine(str(copied_model)).capable()
    folder = copied_model / "transformer"
    single = folder / "diffusion_pytorch_model.safetensors"
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard in shards:
        shutil.copy(single, folder / shard)
    single.unlink()
    index = {"metadata": {}, "weight_map": dict(enumerate(shards))}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    sharded = DiffusersEngine(str(copied_model)).capable()

    assert sharded[Role.DIT].weight_bytes == 2 * whole[Role.DIT].weight_bytes


def test_absent_components_are_stubs_that_keep_geometry(
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
) -> None:
    """Trap 1: without them a VAE factor of 4 or 16 would silently become 8."""
    assert {engine._pipeline.vae_scale_factor for engine in split_engines("flux").values()} == {4}
    assert {engine._pipeline.vae_scale_factor for engine in split_engines("z-image").values()} == {16}
    assert {engine._pipeline.num_channels_latents for engine in split_engines("z-image").values()} == {4}
    stub = split_engines("stable-diffusion-3")[Role.ENCODER]._pipeline.transformer
    assert isinstance(stub, ComponentStub)
    assert (stub.config.joint_attention_dim, stub.dtype) == (64, torch.float32)


@pytest.mark.parametrize("family", ["stable-diffusion-3", "qwen-image"])
def test_stubs_know_what_constructors_compute(
    family: str, split_engines: Callable[[str], Mapping[Role, DiffusersEngine]]
) -> None:
    """Blocks of video models ask a VAE that is elsewhere for its compression ratios, which no configuration names."""
    engines = split_engines(family)
    stubbed, loaded = engines[Role.ENCODER]._pipeline, engines[Role.DIT]._pipeline
    for name, here in (("transformer", loaded), ("vae", engines[Role.DECODER]._pipeline)):
        stub = getattr(stubbed if name == "transformer" else loaded, name)
        module = getattr(here, name)
        plain = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str | tuple)}
        computed = {key for key in plain if not key.startswith("_") and key not in module.config} - {"training"}
        assert computed
        assert {key: getattr(stub, key) for key in computed} == {key: plain[key] for key in computed}
        assert all(weight.is_meta for weight in stub.parameters())


def test_a_stub_has_no_device_and_names_what_nobody_knows(
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
) -> None:
    stub = split_engines("stable-diffusion-3")[Role.ENCODER]._pipeline.transformer
    for attribute in ("device", "no_such_thing"):
        with pytest.raises(AttributeError, match=f"transformer is not loaded in this role.* no '{attribute}'"):
            getattr(stub, attribute)
    with pytest.raises(RuntimeError, match="meta"):
        stub.proj_out(torch.ones(1, stub.proj_out.in_features))  # nothing is computed with weights that are elsewhere


def test_text_encoders_have_stubs_too(split_engines: Callable[[str], Mapping[Role, DiffusersEngine]]) -> None:
    stub = split_engines("qwen-image")[Role.DIT]._pipeline.text_encoder
    assert isinstance(stub, ComponentStub)
    assert stub.get_input_embeddings().weight.is_meta


def test_roles_change_and_weights_follow(model_folder: Callable[[str], str]) -> None:
    engine = DiffusersEngine(model_folder("z-image"))
    assert modules(engine) == {}
    engine.set_roles(ENCODER | DECODER)
    vae = modules(engine)["vae"]
    engine.set_roles(DECODER | DIT)
    assert set(modules(engine)) == {"vae", "transformer"}
    assert modules(engine)["vae"] is vae  # what stays is not loaded again
    assert engine.roles == DECODER | DIT
    engine.close()
    assert (modules(engine), engine.roles) == ({}, frozenset())


def test_one_engine_with_every_role_draws_the_same(
    model_folder: Callable[[str], str],
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
    generate: Callable[..., Image.Image],
) -> None:
    engine = DiffusersEngine(model_folder("stable-diffusion-xl"))
    engine.set_roles(frozenset(REQUIRED))
    params = ImageParams(prompt="a star", width=64, height=64, num_inference_steps=2, guidance_scale=3.0)
    whole = generate(dict.fromkeys(REQUIRED, engine), params)
    assert whole.tobytes() == generate(split_engines("stable-diffusion-xl"), params).tobytes()


def test_a_job_of_a_role_that_is_not_held_fails(
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]], steps: type
) -> None:
    with pytest.raises(EngineError, match="does not hold the role dit"):
        split_engines("z-image")[Role.ENCODER].run(StageJob(Role.DIT, ImageParams()), {}, steps())


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_failed_load_restores_the_former_roles(copied_model: Path, damage: str) -> None:
    """Trap 5: diffusers' ``load_components`` would warn and leave None."""
    weights = copied_model / "transformer" / "diffusion_pytorch_model.safetensors"
    engine = DiffusersEngine(str(copied_model))
    engine.set_roles(ENCODER)
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        weights.unlink()

    with pytest.raises(LoadError, match="transformer of copy cannot be loaded"):
        engine.set_roles(DIT)

    assert engine.roles == ENCODER
    assert set(modules(engine)) == {"text_encoder", "vae"}
    assert isinstance(engine._pipeline.transformer, ComponentStub)


def test_roles_that_cannot_be_restored_are_not_claimed(copied_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DiffusersEngine(str(copied_model))
    engine.set_roles(ENCODER | DECODER)
    monkeypatch.setattr(engine._held, "_room", lambda: -1)  # so that what goes has to go first
    shutil.rmtree(copied_model / "transformer")
    shutil.rmtree(copied_model / "text_encoder")
    with pytest.raises(LoadError):
        engine.set_roles(DIT | DECODER)
    assert engine.roles == DECODER


def test_an_attention_backend_is_set_or_refused(model_folder: Callable[[str], str]) -> None:
    engine = DiffusersEngine(model_folder("flux"), attention_backend="native")
    engine.set_roles(DIT)
    engine = DiffusersEngine(model_folder("flux"), attention_backend="nonsense")
    with pytest.raises(LoadError, match="attention backend 'nonsense' cannot be used"):
        engine.set_roles(DIT)


def test_every_family_has_a_builder(families: ModuleType) -> None:
    assert set(OWN) <= set(families.FAMILIES)
