"""Weights in fewer bits: as many bytes as predicted, pictures that are still right, and nothing mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stage_server.engine import quantised
from stage_server.engine.base import LoadError
from stage_server.engine.checkpoint import BUNDLED
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.leaves import composed, leaves, nbytes, put, rebuilt
from stage_server.engine.low_rank import LowRank, make_adaptable, switched_on
from stage_server.engine.quantised import fit_layers, quantise
from stage_server.engine.upscaler import PictureUpscaler
from stage_server.engine.weight_cache import host_copy
from stage_server.profiling.memory import run
from stage_server.settings import Settings
from stage_server.weight_formats import WeightFormat
from tests import quantize
from tests.engine.enhancer_folder import save_enhancer
from tests.engine.upscaler_folder import save_upscaler
from wire.params import ImageParams
from wire.types import REQUIRED, Role

Folder = Callable[[str], str]
Generate = Callable[..., Image.Image]

ALL = frozenset(REQUIRED)
INT8 = WeightFormat.INT8
ON_ANY = (
    WeightFormat.INT8,
    WeightFormat.INT8_DYNAMIC,
    WeightFormat.FLOAT8,
    WeightFormat.NF4,
    WeightFormat.FLOAT8_STORAGE,
)
PARAMS = ImageParams(prompt="a large red circle on white", width=64, height=64, num_inference_steps=3, seed=5)


@pytest.fixture(autouse=True, scope="module")
def packages() -> None:
    quantize.make_importable()


def bundled(name: str) -> Path:
    return BUNDLED / name


def drawn(generate: Generate, formats: dict[str, WeightFormat], model: str = "tiny-shapes") -> np.ndarray[Any, Any]:
    engine = DiffusersEngine(model, formats=formats)
    engine.set_roles(ALL)
    return np.asarray(generate(dict.fromkeys(REQUIRED, engine), PARAMS)).astype(int)


@pytest.fixture(scope="module")
def plain(generate: Generate) -> np.ndarray[Any, Any]:
    return drawn(generate, {})


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("tiny-shapes", "bfloat16"),
        ("flux", "float32"),
        ("stable-diffusion-3-t5", "bfloat16"),
        ("flux2-klein", "float32"),
    ],
)
def test_as_many_bytes_as_predicted(family: str, dtype: str, model_folder: Folder) -> None:
    engine = DiffusersEngine(model_folder(family), dtype=dtype)
    components, found = engine._components, 0
    for name, files in components.files.items():
        for form in ON_ANY if files.is_module else ():
            with quantised_as(components, name, form):
                module = components._read(name, files) if fits(components, name, form) else None
            if module is not None:
                predicted = components.predicted_bytes(name, form).device
                assert nbytes(module) == pytest.approx(predicted, rel=0.01), (name, form)
                assert nbytes(module) < 1.01 * components.predicted_bytes(name, WeightFormat.NONE).device
                found += 1
    assert found >= 4


class quantised_as:  # noqa: N801  # reads as a function
    def __init__(self, components: Any, name: str, form: WeightFormat) -> None:
        self._components, self._formats = components, {name: form}

    def __enter__(self) -> None:
        self._before, self._components.formats = self._components.formats, self._formats

    def __exit__(self, *_: object) -> None:
        self._components.formats = self._before


def fits(components: Any, name: str, form: WeightFormat) -> bool:
    return bool(components.predicted_bytes(name, form) != components.predicted_bytes(name, WeightFormat.NONE))


@pytest.mark.parametrize("form", ON_ANY)
def test_pictures_are_nearly_the_same(form: WeightFormat, generate: Generate, plain: np.ndarray[Any, Any]) -> None:
    picture = drawn(generate, {"transformer": form, "text_encoder": form})
    off = np.abs(picture - plain).mean()
    assert 0 < off < 20
    if form is WeightFormat.NF4:  # bitsandbytes lays weights out anew at the first call
        assert np.array_equal(picture, drawn(generate, {"transformer": form, "text_encoder": form}))


def test_a_server_of_another_format_is_of_another_key(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled("tiny-shapes"), tmp_path / "tiny-shapes"))
    plain, by_option = (DiffusersEngine(str(folder), formats=formats) for formats in ({}, {"transformer": INT8}))
    assert plain.describe().key != by_option.describe().key
    assert (plain.describe().formats, by_option.describe().formats) == ({}, {"transformer": "int8"})
    assert "torchao" in by_option.software
    assert "torchao" not in plain.software
    serving = json.loads((folder / "serving.json").read_text())
    (folder / "serving.json").write_text(json.dumps(serving | {"quantize": {"transformer": "int8"}}))
    assert DiffusersEngine(str(folder)).describe().key == by_option.describe().key
    taken_back = DiffusersEngine(str(folder), formats={"transformer": WeightFormat.NONE})
    assert taken_back.describe().key == plain.describe().key


def test_the_scheduler_hears_of_the_bytes_that_are_taken() -> None:
    engine = DiffusersEngine("tiny-shapes", formats={"transformer": INT8})
    predicted = engine.capable()[Role.DIT].weight_bytes
    assert predicted < 0.3 * DiffusersEngine("tiny-shapes").capable()[Role.DIT].weight_bytes
    engine.set_roles(frozenset({Role.DIT}))
    assert engine.capable()[Role.DIT].weight_bytes == pytest.approx(predicted, rel=0.01)
    assert engine.resident_bytes == engine.capable()[Role.DIT].weight_bytes


@pytest.mark.parametrize(
    ("formats", "complaint"),
    [
        ({"denoiser": "int8"}, "no component 'denoiser' with weights; it has text_encoder, transformer, vae"),
        ({"tokenizer": "int8"}, "no component 'tokenizer' with weights"),
        ({"transformer": "int4"}, "int4 needs a CUDA device, and this is cpu; possible here with float32: int8, "),
        ({"transformer": "float8-dynamic"}, "float8-dynamic needs a CUDA device"),
    ],
)
def test_what_cannot_be_is_said_at_the_start(formats: dict[str, str], complaint: str) -> None:
    with pytest.raises(LoadError, match=f"--quantize .*{complaint}"):
        DiffusersEngine("tiny-shapes", formats={name: WeightFormat(form) for name, form in formats.items()})


def test_a_package_that_is_absent_is_named_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(quantised, "version", absent)
    with pytest.raises(LoadError, match=r"needs the package torchao.*pip install .*\[quantize\]"):
        DiffusersEngine("tiny-shapes", formats={"transformer": INT8})
    DiffusersEngine("tiny-shapes", formats={"transformer": WeightFormat.FLOAT8_STORAGE})
    DiffusersEngine("tiny-shapes", formats={"transformer": INT8}, loads=False)


def test_nothing_to_change_is_refused() -> None:
    engine = DiffusersEngine("tiny-shapes", formats={"vae": INT8})
    with pytest.raises(
        LoadError, match="vae of tiny-shapes cannot be loaded: none of its layers is fit for the format"
    ):
        engine.set_roles(frozenset({Role.DECODER}))


def test_what_is_quantised_on_disk_is_left_alone(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled("tiny-shapes"), tmp_path / "m"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(LoadError, match="files of transformer are quantised already"):
        DiffusersEngine(str(folder), formats={"transformer": INT8})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("transformer=int3", "'int3' is no format of weights; none, int8, "),
        ("transformer", "'transformer' is no COMPONENT=FORMAT"),
        ("transformer=int8,transformer=nf4", "names a component twice"),
    ],
)
def test_mistakes_in_the_option_are_named(given: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Settings(model="m", role="dit", gateway="tcp://127.0.0.1:1", quantize=given)  # type: ignore[arg-type]


def test_a_wrong_serving_file_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled("tiny-shapes"), tmp_path / "m"))
    (folder / "serving.json").write_text('{"quantize": {"transformer": "int3"}}')
    with pytest.raises(LoadError, match=r"serving.json is not as docs/models.md describes: .*int3"):
        DiffusersEngine(str(folder))


def test_two_models_share_only_what_has_one_format(model_folder: Folder, tmp_path: Path) -> None:
    other = str(shutil.copytree(model_folder("z-image"), tmp_path / "other"))
    for theirs, is_shared in (({"text_encoder": INT8}, True), ({}, False)):
        engines = [DiffusersEngine(model_folder("z-image"), formats={"text_encoder": INT8})]
        engines.append(DiffusersEngine(other, formats=theirs))
        DiffusersEngine.acquaint(engines)
        assert all(("text_encoder" in engine._components.common_bytes) is is_shared for engine in engines)


def test_lora_on_a_quantised_layer() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
    quantise(layer, WeightFormat.NF4, torch.device("cpu"), torch.float32)
    make_adaptable("transformer", layer)
    given, part = torch.randn(2, 64), LowRank(torch.randn(4, 64), torch.randn(64, 4), None, 1.0)
    with torch.no_grad():
        before = layer(given)
        with switched_on({"transformer": [({"0": part}, 0.5)]}):
            after = layer(given)
    assert torch.allclose(after, before + 0.5 * part.of(layer[0], given), atol=1e-4)


@pytest.mark.parametrize("form", [INT8, WeightFormat.FLOAT8])
def test_to_a_device_and_back(form: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of weights on a CUDA device, with torch's meta device in its place."""
    module, given = quantised_pair(form)
    with torch.no_grad():
        before, size = module(given), nbytes(module)
    copy = host_copy(module, torch.device("cuda"), pinned=False)
    assert copy.nbytes == size
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    copy = replace(copy, tensors=())  # plain ones cannot change to the meta device
    copy.to_device(torch.device("meta"))
    assert all(leaf.is_meta for _, _, parameter in composed(module) for leaf in leaves(parameter))
    copy.to_host()
    assert nbytes(module) == size
    with torch.no_grad():
        assert torch.equal(module(given), before)


def test_a_copy_in_four_bits_leaves_the_original_alone() -> None:
    module, given = quantised_pair(WeightFormat.NF4)
    with torch.no_grad():
        before = module(given)
    originals = composed(module)
    for layer, name, parameter in originals:
        put(layer, name, rebuilt(parameter, torch.clone))
    with torch.no_grad():
        assert torch.equal(module(given), before)
        for _, _, parameter in composed(module):
            for leaf in leaves(parameter):
                leaf.zero_()
        assert not torch.equal(module(given), before)
        for place in originals:
            put(*place)
        assert torch.equal(module(given), before)


def quantised_pair(form: WeightFormat) -> tuple[torch.nn.Module, torch.Tensor]:
    module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64)).eval()
    quantise(module, form, torch.device("cpu"), torch.float32)
    return module, torch.randn(3, 64)


def test_tied_weights_stay_tied() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.inner = torch.nn.Embedding(128, 64), torch.nn.Linear(64, 64)
            self.head = torch.nn.Linear(64, 128, bias=False)
            self.head.weight = self.embedding.weight

    assert [name for name, _ in fit_layers(Tied(), INT8, torch.float32)] == ["inner"]


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., list[str]]:
    def told(*arguments: str) -> list[str]:
        run(["--model", "tiny-shapes", "--device", "cpu", *arguments])
        return capsys.readouterr().out.splitlines()

    return told


def test_the_command_tells_what_each_format_takes(table: Callable[..., list[str]], tmp_path: Path) -> None:
    output = tmp_path / "memory.json"
    lines = table("--quantize", "transformer=int8", "--output", str(output))
    assert any(line.split()[:4] == ["transformer", "int4", "none", "13.37"] for line in lines)
    assert lines[-1] == "roles with transformer in int8: encoder 0.007 GB, dit 0.005 GB, decoder 0.005 GB"
    written = json.loads(output.read_text())
    assert written["formats"] == {"transformer": "int8"}
    assert written["weight_bytes"]["dit"] == 5290048


def test_the_command_tells_of_stages_beside_the_model(table: Callable[..., list[str]], tmp_path: Path) -> None:
    output = tmp_path / "memory.json"
    upscaler, enhancer = save_upscaler(tmp_path / "upscaler"), save_enhancer(tmp_path / "enhancer")
    further = ("--upscaler", str(upscaler), "--enhancer", str(enhancer), "--enhancer-tokens", "32")
    lines = {line.split()[0]: line.split() for line in table(*further, "--measure", "--output", str(output))}
    assert lines["upscaler"][1:3] == ["none", "none"]
    assert float(lines["upscaler"][-1].rstrip("%")) < 0, "tables that no file holds are much in so small a model"
    assert abs(float(lines["enhancer"][-1].rstrip("%"))) < 1
    written = json.loads(output.read_text())["weight_bytes"]
    assert set(written) == set(Role)
    assert written["enhancer"] == sum(tensor.nbytes for tensor in load_file(enhancer / "model.safetensors").values())


def test_the_command_goes_on_where_a_stage_beside_the_model_does_not_fit(
    table: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: PictureUpscaler) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PictureUpscaler, "load", load)
    lines = table("--upscaler", str(save_upscaler(tmp_path)), "--measure")
    (line,) = (line for line in lines if line.startswith("upscaler"))
    assert "does not fit into the memory of cpu" in line
    assert lines[-1].startswith("roles with no format")


def test_the_command_measures_and_says_what_cannot_be(table: Callable[..., list[str]]) -> None:
    lines = [line.split() for line in table("--measure")]
    assert ["transformer", "nf4"] in [line[:2] for line in lines]
    offs = [float(line[-1].rstrip("%")) for line in lines[1:-1] if line[-1].endswith("%")]
    assert len(offs) > 8
    assert max(map(abs, offs)) < 1
    assert any("needs another device or dtype" in " ".join(line) for line in lines)
