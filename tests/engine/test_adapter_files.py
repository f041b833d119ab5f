"""Which LoRA files are read, by diffusers' own converters, and which are refused with what reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from stage_server.engine.adapter_file import AdapterReader
from stage_server.engine.adapter_source import locate, named_sources
from stage_server.engine.base import LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.low_rank import LowRank
from tests.loras import State, lora, write
from wire.params import AdapterUse, ImageParams
from wire.types import REQUIRED, Role

MODEL = "tiny-shapes"
LAYER = "layers.0.attention.to_q"
ROOM = 1 << 30


def opened(path: str, model: str = MODEL) -> DiffusersEngine:
    return DiffusersEngine(model, adapters={"style": path}, adapter_bytes=ROOM)


def read(path: str, model: str = MODEL) -> Mapping[str, Mapping[str, LowRank]]:
    engine = DiffusersEngine(model)
    return AdapterReader(type(engine._pipeline), engine._components).read(Path(path))


def only(state: State, layer: str = LAYER) -> State:
    return {key: value for key, value in state.items() if f".{layer}." in key}


def kohya(state: State, prefix: str, alpha: float) -> State:
    """As kohya's trainer writes a state of one component in peft's form."""
    renamed: State = {}
    for key, value in state.items():
        layer, _, half = key.partition(".lora_")
        name = f"{prefix}_{layer.partition('.')[2].replace('.', '_')}"
        renamed[f"{name}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = value
        renamed[f"{name}.alpha"] = torch.tensor(alpha)
    return renamed


# --- formats ----------------------------------------------------------------------------------------------------------


def test_what_diffusers_writes_is_read_with_the_alpha_in_its_metadata(tmp_path: Path) -> None:
    state = only(lora(MODEL, 1))
    plain = read(write(tmp_path / "plain.safetensors", state))["transformer"]
    metadata = {"transformer.lora_alpha": 8, "transformer.r": 4, "transformer.alpha_pattern": {"to_k": 2}}
    noted = read(write(tmp_path / "noted.safetensors", lora(MODEL, 1), metadata))["transformer"]
    assert plain.keys() == {LAYER}
    assert torch.equal(plain[LAYER].down, state[f"transformer.{LAYER}.lora_A.weight"])
    assert (plain[LAYER].scale, noted[LAYER].scale, noted["layers.0.attention.to_k"].scale) == (1.0, 2.0, 0.5)


def test_what_peft_writes_is_read_with_the_alpha_beside_it(tmp_path: Path) -> None:
    state = {key.replace("transformer.", "base_model.model.", 1): value for key, value in only(lora(MODEL, 1)).items()}
    path = write(tmp_path / "adapter_model.safetensors", state)
    with pytest.raises(LoadError, match=r"no readable adapter_config\.json"):
        opened(path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2, "use_rslora": True}))
    assert read(path)["transformer"][LAYER].scale == 1.0
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    assert read(str(tmp_path / "adapter_model.safetensors"))["transformer"][LAYER].scale == 0.5
    assert locate(str(tmp_path)) == Path(path)


def test_what_kohya_writes_is_read_with_its_alphas(tmp_path: Path) -> None:
    state = only(lora(MODEL, 1))
    found = read(write(tmp_path / "x.safetensors", kohya(state, "lora_unet", alpha=2.0)))["transformer"][LAYER]
    wanted = 0.5 * state[f"transformer.{LAYER}.lora_B.weight"] @ state[f"transformer.{LAYER}.lora_A.weight"]
    torch.testing.assert_close(found.scale * found.up @ found.down, wanted)


def xl_files(folder: Path, model: str) -> Mapping[str, str]:
    """One adapter of all three components, in both forms."""
    parts = {name: lora(model, 3, name) for name in ("unet", "text_encoder", "text_encoder_2")}
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    as_peft: State = {}
    as_kohya: State = {}
    for name, part in parts.items():
        as_peft |= part
        old = {k.replace(f"{name}.", f"{name}.text_model.", 1) if "text" in name else k: v for k, v in part.items()}
        as_kohya |= kohya(old if name == "text_encoder" else part, prefixes[name], alpha=4.0)
    return {
        "peft": write(folder / "peft.safetensors", as_peft),
        "kohya": write(folder / "kohya.safetensors", as_kohya),
    }


def test_the_parts_for_text_encoders_are_applied_by_the_servers_that_encode(
    tmp_path: Path, model_folder: Callable[[str], str], generate: Callable[..., Image.Image]
) -> None:
    model = model_folder("stable-diffusion-xl")
    files = xl_files(tmp_path, model)
    one, other = (read(path, model) for path in files.values())
    assert one.keys() == {"unet", "text_encoder", "text_encoder_2"}
    assert {name: part.keys() for name, part in one.items()} == {name: part.keys() for name, part in other.items()}
    engines = {role: DiffusersEngine(model, adapters=files, adapter_bytes=ROOM) for role in REQUIRED}
    for role, engine in engines.items():
        engine.set_roles(frozenset({role}))
    (adapter, _) = engines[Role.DIT].describe().adapters
    assert adapter.roles == (Role.ENCODER, Role.DIT)
    params = ImageParams(prompt="a red circle", width=64, height=64, num_inference_steps=2)
    drawn = {}
    for adapter in engines[Role.DIT].describe().adapters:
        uses = (AdapterUse(adapter.name, adapter.digest, 1.0),)
        drawn[adapter.name] = generate(engines, _with(params, uses))
    plain = generate(engines, params)
    assert drawn["peft"].tobytes() == drawn["kohya"].tobytes()
    assert ImageChops.difference(plain, drawn["peft"]).getbbox() is not None
    assert {component for _, component in engines[Role.ENCODER].resident_adapters} == {"text_encoder", "text_encoder_2"}
    assert {component for _, component in engines[Role.DIT].resident_adapters} == {"unet"}


def _with(params: ImageParams, uses: tuple[AdapterUse, ...]) -> ImageParams:
    return ImageParams(
        prompt=params.prompt,
        width=params.width,
        height=params.height,
        num_inference_steps=params.num_inference_steps,
        adapters=uses,
    )


@pytest.mark.parametrize("family", ["flux", "stable-diffusion-3", "qwen-image", "flux2-klein", "krea-2"])
def test_every_family_takes_diffusers_form(family: str, tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    model = model_folder(family)
    state = lora(model, 1)
    engine = opened(write(tmp_path / "x.safetensors", state), model)
    assert engine.describe().adapters[0].roles == (Role.DIT,)
    assert len(read(str(tmp_path / "x.safetensors"), model)["transformer"]) == len(state) // 2


def test_convolutions_are_adapted_too(tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    model = model_folder("stable-diffusion-xl")
    engine = DiffusersEngine(model)
    engine.set_roles(frozenset({Role.DIT}))
    layer = engine._pipeline.unet.conv_in
    state = {
        "unet.conv_in.lora_A.weight": torch.randn(2, layer.in_channels, 3, 3),
        "unet.conv_in.lora_B.weight": torch.randn(layer.out_channels, 2, 1, 1),
    }
    part = read(write(tmp_path / "x.safetensors", state), model)["unet"]["conv_in"]
    given = torch.randn(1, layer.in_channels, 8, 8)
    product = torch.einsum("or,rihw->oihw", state["unet.conv_in.lora_B.weight"][:, :, 0, 0], part.down)
    wanted = torch.nn.functional.conv2d(given, product, None, layer.stride, layer.padding)
    torch.testing.assert_close(part.of(layer, given), wanted, rtol=1e-4, atol=1e-4)


# --- refusals ---------------------------------------------------------------------------------------------------------


def lacking_half() -> State:
    state = lora(MODEL, 1)
    del state[f"transformer.{LAYER}.lora_B.weight"]
    return state


def changed(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> State:
    state = lora(MODEL, 1)
    return state | {key: change(state[key])}


def renamed(old: str, new: str) -> State:
    return {key.replace(old, new): value for key, value in lora(MODEL, 1).items()}


A, B = f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (renamed("layers.", "blocks."), r"is for another model: \d+ of its \d+ layers are none of this model's tran"),
        (renamed("transformer.", "dit."), "is for another model"),
        (renamed(LAYER, "layers.7.attention.to_q"), r"1 of its \d+ layers are none of .*'layers.7.attention.to_q'"),
        ({"foo.weight": torch.ones(2, 2)}, "no part of a LoRA|no format"),
        (lacking_half(), f"incomplete: of the two matrices of '{LAYER}' one is missing"),
        (changed(A, lambda t: t[:2]), rf"does not fit the model: the matrices of '{LAYER}' are 2 × \d+ and \d+ × 4"),
        (changed(A, lambda t: torch.ones(4, 7)), f"does not fit the model: the matrices of '{LAYER}' are 4 × 7"),
        (changed(B, lambda t: torch.ones(5, 4)), f"does not fit the model: .*'{LAYER}'"),
        (changed(B, lambda t: t.fill_(float("nan"))), f"is damaged: '{LAYER}' holds NaN or infinity"),
        (lora(MODEL, 1) | {"text_encoder.layers.0.q.lora_A.weight": torch.ones(2, 2)}, "which cannot be adapted"),
        (lora(MODEL, 1) | {f"transformer.{LAYER}.lora_magnitude_vector": torch.ones(2)}, "but DoRA"),
        ({f"transformer.{LAYER}.lokr_w1": torch.ones(2, 2)}, "but LoKr"),
        ({f"transformer.{LAYER}.hada_w1_a": torch.ones(2, 2)}, "but LoHa"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(tmp_path: Path, state: State, reason: str) -> None:
    path = write(tmp_path / "style.safetensors", state)
    with pytest.raises(LoadError, match=reason) as refusal:
        opened(path)
    assert f"adapter style ({path}): it " in str(refusal.value)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "its file is empty"),
        (lambda data: data[:-7], "its file is cut short"),
        (lambda data: data[:40], "its file is cut short inside its header"),
        (lambda data: b"PK\x03\x04" * 100, "its file is no safetensors file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "its file is a Git LFS pointer"),
        (lambda data: data[:8] + b"x" + data[9:], "its file has a header that does not describe tensors"),
    ],
)
def test_a_damaged_file_is_refused_when_the_server_starts(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    path = Path(write(tmp_path / "style.safetensors", lora(MODEL, 1)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LoadError, match=f"adapter style .*: it is damaged: {reason}"):
        opened(str(path))


def test_one_that_is_larger_than_all_that_may_be_resident_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "style.safetensors", lora(MODEL, 1))
    with pytest.raises(LoadError, match="and --adapter-bytes is 1000"):
        DiffusersEngine(MODEL, adapters={"style": path}, adapter_bytes=1000)


# --- places -----------------------------------------------------------------------------------------------------------


def test_options_and_a_folder_name_adapters(tmp_path: Path) -> None:
    write(tmp_path / "all" / "one.safetensors", lora(MODEL, 1))
    write(tmp_path / "all" / "two" / "pytorch_lora_weights.safetensors", lora(MODEL, 1))
    (tmp_path / "all" / "README.md").write_text("not an adapter")
    sources = named_sources(["three=org/repository@v1:x.safetensors"], str(tmp_path / "all"))
    assert sources["three"] == "org/repository@v1:x.safetensors"
    assert locate(sources["one"]).name == "one.safetensors"
    assert locate(sources["two"]).name == "pytorch_lora_weights.safetensors"
    assert sources.keys() == {"one", "two", "three"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["style"], "write NAME=FILE"),
        (["=x"], "a name has"),
        (["a/b=x"], "a name has"),
        (["a=x", "a=y"], "two adapters are named a: x and y"),
    ],
)
def test_bad_names_are_refused(given: list[str], reason: str) -> None:
    with pytest.raises(LoadError, match=reason):
        named_sources(given, "")


def test_places_without_one_adapter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(LoadError, match="can run code"):
        locate(str(tmp_path / "x.bin"))
    with pytest.raises(LoadError, match=r"has no \.safetensors file"):
        locate(str(tmp_path))
    for name in ("b", "a"):
        write(tmp_path / f"{name}.safetensors", lora(MODEL, 1))
    with pytest.raises(LoadError, match=r"has a\.safetensors, b\.safetensors: name the one"):
        locate(str(tmp_path))
    with pytest.raises(LoadError, match="neither a file, a folder, nor a hub id"):
        locate(str(tmp_path / "nowhere"))
    with pytest.raises(LoadError, match="is in the cache, and the hub is not to be asked"):
        locate("org/not-there", local_files_only=True)
    with pytest.raises(LoadError, match="cannot be read"):
        named_sources([], str(tmp_path / "nowhere"))
