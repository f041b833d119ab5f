"""Damage to a model's folder: one line that names the file, what is wrong and what helps. Never a picture.

The engine is asked as ``python -m stage_server`` asks it; ``tests/integration/test_broken_models.py`` starts some.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from stage_server.engine.base import LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.weights import DamagedFile, read_header
from wire.types import REQUIRED, Role

DIT = Path("transformer/diffusion_pytorch_model.safetensors")
VAE = Path("vae/diffusion_pytorch_model.safetensors")
TEXT = Path("text_encoder/model.safetensors")
Damage = Callable[[Path], object]


def put(name: str | Path, content: bytes | str) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: Path, keep: int) -> Damage:
    """Keep the first ``keep`` bytes; all but the last if negative."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def gone(name: Path | str) -> Damage:
    return lambda folder: (folder / name).unlink()


def changed(name: str, **entries: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def without(name: Path, weight: str) -> Damage:
    def drop(folder: Path) -> None:
        weights = load_file(folder / name)
        del weights[weight]
        save_file(weights, folder / name, {"format": "pt"})

    return drop


def sharded(weight_map: object) -> Damage:
    def split(folder: Path) -> None:
        (folder / DIT).rename(folder / "transformer" / "part-1.safetensors")
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{DIT}.index.json").write_text(json.dumps(index))

    return split


def pickled(content: bytes) -> Damage:
    def replace(folder: Path) -> None:
        (folder / VAE).unlink()
        (folder / VAE).with_suffix(".bin").write_bytes(content)

    return replace


def header(content: object, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4a\nsize 334643268\n"

DAMAGES: dict[str, tuple[Damage, str]] = {
    "cut in the length": (cut(DIT, 5), f"{DIT} is no safetensors file: it begins with b'"),
    "cut in the header": (cut(DIT, 100), f"{DIT} is cut short inside its header: that takes 7056 bytes, 100 are there"),
    "cut in the data": (cut(DIT, -7), f"{DIT} is cut short: its header describes 1453392 bytes, 1453385 are there"),
    "cut text encoder": (cut(TEXT, -7), f"{TEXT} is cut short: its header describes"),
    "bytes too many": (put(VAE, header({"a": TENSOR}, bytes(9))), f"{VAE} has bytes too many: its header describes"),
    "empty weights": (put(VAE, b""), f"{VAE} is empty; download it again"),
    "a page in place of weights": (put(VAE, "<!DOCTYPE html><html>"), f"{VAE} is no safetensors file: it begins with"),
    "a pointer in place of weights": (put(VAE, LFS), f"{VAE} is a Git LFS pointer of 72 bytes, not the file"),
    "a header of noise": (put(VAE, (4).to_bytes(8, "little") + b"{]}["), f"{VAE} has a header that does not describe"),
    "tensors that overlap": (
        put(VAE, header({"a": TENSOR, "b": TENSOR}, bytes(8))),
        "b lies at 0 to 8, and should at 8",
    ),
    "no weights": (gone(VAE), "vae holds no weights: neither diffusion_pytorch_model.safetensors nor model.safeten"),
    "a pickle cut short": (
        pickled(b"PK\x03\x04 and no more"),
        ".bin is cut short at 16 bytes: the directory at its end",
    ),
    "absent shards": (
        sharded({"a": "part-1.safetensors", "b": "part-2.safetensors"}),
        "names part-2.safetensors, which is not there (1 of 2 ",
    ),
    "an index of the wrong form": (
        sharded(["part-1.safetensors"]),
        "index.json has no weight_map from tensors to files",
    ),
    "a weight that is absent": (
        without(VAE, "decoder.conv_in.bias"),
        "1 weights of a AutoencoderKL of this configuration are not in",
    ),
    "layers that are absent": (
        changed("text_encoder/config.json", num_hidden_layers=4, layer_types=["full_attention"] * 4),
        "text_encoder of copy cannot be loaded: 11 weights of a Qwen3Model of this configuration are not in its",
    ),
    "another shape": (
        changed("vae/config.json", latent_channels=8),
        "vae of copy cannot be loaded: ValueError: Cannot",
    ),
    "another shape of the text encoder": (
        changed("text_encoder/config.json", intermediate_size=32),
        "9 weights do not fit config.json: layers.0.mlp.down_proj.weight is [32, 64] in the file, and [32, 32] in a",
    ),
    "another architecture": (
        changed("model_index.json", transformer=["diffusers", "FluxTransformer2DModel"]),
        "1156 weights of a FluxTransformer2DModel of this configuration are not in its files",
    ),
    "a class that is not there": (
        changed("model_index.json", transformer=["diffusers", "NoSuchModel"]),
        "copy has no modular pipeline that diffusers can build: module diffusers has no attribute NoSuchModel",
    ),
    "a nonsensical value": (
        changed("transformer/config.json", n_layers="many"),
        "transformer of copy cannot be loaded",
    ),
    "no configuration": (gone("vae/config.json"), "copy has no vae/config.json"),
    "configuration cut short": (put("vae/config.json", '{"a": 1,'), "vae/config.json is not readable JSON: Expecting"),
    "configuration of noise": (
        put("vae/config.json", b"\xff\xfe\x00"),
        "vae/config.json is not readable JSON: 'utf-8'",
    ),
    "configuration empty": (put("vae/config.json", ""), "vae/config.json is empty; download it again"),
    "configuration a list": (put("vae/config.json", "[]"), "vae/config.json is not readable JSON of the right form"),
    "configuration a pointer": (put("vae/config.json", LFS), "vae/config.json is a Git LFS pointer"),
    "index cut short": (put("model_index.json", "{"), "model_index.json is not readable JSON: Expecting"),
    "no index": (gone("model_index.json"), "copy is no model: it has neither modular_model_index.json nor model_index"),
    "tokenizer cut short": (put("tokenizer/tokenizer.json", "{"), "tokenizer of copy cannot be loaded"),
    "scheduler cut short": (put("scheduler/scheduler_config.json", "{"), "scheduler_config.json is not readable JSON"),
    "defaults of the wrong type": (
        put("serving.json", '{"default_size": "big"}'),
        "serving.json is not as docs/models",
    ),
}


@pytest.fixture
def copied_model(tmp_path: Path, model_folder: Callable[[str], str]) -> Path:
    return Path(shutil.copytree(model_folder("z-image"), tmp_path / "copy"))


def start(folder: Path) -> DiffusersEngine:
    """As far as a stage server with every role goes before it says Hello."""
    engine = DiffusersEngine(str(folder))
    engine.capable()
    engine.set_roles(frozenset(REQUIRED))
    return engine


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_does_not_start(name: str, copied_model: Path) -> None:
    damage, message = DAMAGES[name]
    damage(copied_model)
    with pytest.raises(LoadError) as caught:
        start(copied_model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_an_undamaged_model_starts(copied_model: Path) -> None:
    assert start(copied_model).roles == frozenset(REQUIRED)


def test_damage_that_comes_while_serving_names_the_file_too(copied_model: Path) -> None:
    engine = DiffusersEngine(str(copied_model))
    engine.set_roles(frozenset({Role.ENCODER}))
    DAMAGES["cut in the header"][0](copied_model)
    with pytest.raises(LoadError, match=r"transformer of copy cannot be loaded: .*is cut short inside its header"):
        engine.set_roles(frozenset({Role.DIT}))
    assert engine.roles == frozenset({Role.ENCODER})


@pytest.fixture
def nobody(model_folder: Callable[[str], str]) -> Iterator[Path]:
    """A model in a folder that others may enter; root reads everything, and steps down for the test."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(model_folder("z-image"), Path(folder) / "copy"))


@pytest.mark.parametrize("path", [DIT, Path("vae/config.json"), Path("vae"), Path("model_index.json"), Path()])
def test_what_may_not_be_read(path: Path, nobody: Path) -> None:
    target = nobody / path
    start(nobody)  # imports, while everything may be read
    mode = target.stat().st_mode
    target.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(LoadError, match=r"cannot be read.*[Pp]ermission denied"):
            start(nobody)
    finally:
        os.seteuid(user)
        target.chmod(mode)


def test_in_the_cache_of_the_hub_it_is_the_blob_that_must_go(tmp_path: Path) -> None:
    """A link that was deleted would come back, to the same blob."""
    blob, link = tmp_path / "blobs" / "4a5b", tmp_path / "snapshots" / "1" / "model.safetensors"
    blob.parent.mkdir()
    link.parent.mkdir(parents=True)
    blob.write_bytes(header({"a": TENSOR}, bytes(7)))
    link.symlink_to(blob)
    with pytest.raises(DamagedFile, match=rf"; delete {blob} and start again .* or take another --revision"):
        read_header(link)


def test_a_package_that_a_component_needs_is_named(copied_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configurations of some processors are read without it; only loading shows that it is missing."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found in your env")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.from_pretrained", refuse)
    engine = DiffusersEngine(str(copied_model))
    with pytest.raises(
        LoadError,
        match=r"tokenizer of .* cannot be loaded: it needs the package torchvision.*; pip install torchvision$",
    ):
        engine.set_roles(frozenset({Role.ENCODER}))
