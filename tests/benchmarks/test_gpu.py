"""``make bench-gpu`` on tiny models: everything but the figures; and that the full ones have the published sizes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import lighter
from benchmarks.gpu.__main__ import NEEDS, _further, main
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.weights import random_weights, write_folder
from scheduler.cost.profile import load
from stage_server.engine.base import StageJob, Unwatched
from stage_server.engine.weights import element_counts
from stage_server.settings import EngineSettings
from stage_server.startup import make_real_engine
from tests import quantize
from wire.params import ImageParams
from wire.types import REQUIRED, Role

ROOT = Path(__file__).parents[2]
ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=ON_CUDA)])
def test_every_part_of_both_models(device: str, tmp_path: Path) -> None:
    status = main(["--tiny", "--device", device, "--repeats", "1", "--output", str(tmp_path)])
    assert status == 0, (tmp_path / "results.md").read_text()
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    done = {(r["model"], r["part"], r["role"]) for r in records if r.get("seconds", 0) > 0}
    roles = {
        "stages": REQUIRED,
        "load": REQUIRED,
        "batches": REQUIRED,
        "moves": REQUIRED,
        "overlap": (Role.DIT, Role.DECODER),
    }
    roles |= dict.fromkeys(("step_caches", "attention", "formats", "offloading"), (Role.DIT,))
    assert done == {
        (model, part, role) for model in ("Z-Image-Turbo", "FLUX.1-dev") for part in roles for role in roles[part]
    }
    assert {r["prefetch"] for r in records if r["part"] == "overlap"} == {True, False}
    assert {r["members"] for r in records if r["part"] == "batches"} == {1, 2}
    for record in (r for r in records if r["part"] in ("formats", "offloading") and "seconds" in r):
        assert record["predicted_bytes"] == pytest.approx(record["loaded_bytes"], rel=0.01), record
        assert (record["way"] == "full") <= (record["relative"] == 1)
    ways = {(r["model"], r["way"]) for r in records if r["part"] in ("formats", "offloading") and "seconds" in r}
    assert {
        (model, way) for model in ("Z-Image-Turbo", "FLUX.1-dev") for way in ("full", "float8-storage", "leaf")
    } <= ways
    assert ("Z-Image-Turbo", "block") in ways, "FLUX.1-dev has one block of each kind here, too few"
    assert "int4: --quantize transformer=int4" in (tmp_path / "results.md").read_text()
    assert "| FLUX.1-dev | dit | 128x128 |" in (tmp_path / "results.md").read_text()
    profile = load(tmp_path / "z-image-turbo.toml")
    assert (profile.model.pixels_per_token, profile.model.latent_pixels) == (16, 8)
    assert profile.roles[Role.DIT].weights_bytes > 0
    assert "Loading is from host memory" in (tmp_path / "flux.1-dev.toml").read_text()


def test_formats_of_packages_are_measured_where_they_are(tmp_path: Path) -> None:
    folder = write_folder(MODELS["z-image"](True), tmp_path / "model")
    settings = EngineSettings(model=str(folder), device="cpu", weight_cache_bytes=0)
    with random_weights("cpu"):
        full = make_real_engine(settings, {})
        quantize.make_importable()
        full.set_roles(frozenset({Role.ENCODER}))
        params = ImageParams(prompt="a star", width=64, height=64, num_inference_steps=2, guidance_scale=1.0)
        inputs = full.run(StageJob(Role.ENCODER, params), {}, Unwatched())[Role.DIT]
        told: list[dict[str, Any]] = []
        ways = {form: lighter.FORMATS[form] for form in ("int8", "float8", "nf4")}
        lighter.lighter(
            full, partial(_further, settings), ways, [("64x64", params, inputs)], 1, lambda **r: told.append(r)
        )
    assert [record["way"] for record in told] == ["full", "int8", "float8", "nf4"]
    whole, *formats = told
    for record in formats:
        assert record["loaded_bytes"] < whole["loaded_bytes"]
        assert record["predicted_bytes"] == pytest.approx(record["loaded_bytes"], rel=0.01)
        assert record["relative"] == record["seconds"] / whole["seconds"]


def test_a_part_for_which_no_time_is_left_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--device", "cpu", "--models", "flux", "--seconds", "1", "--output", str(tmp_path)]) == 0
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [record["part"] for record in records if "skipped" in record] == list(NEEDS)
    assert "- batches of FLUX.1-dev: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("z-image", {"text_encoder": 4.02, "transformer": 6.15, "vae": 0.084}),
        ("flux", {"text_encoder": 0.123, "text_encoder_2": 4.76, "transformer": 11.9, "vae": 0.084}),
    ],
)
def test_full_models_have_the_published_sizes(model: str, billions: dict[str, float], tmp_path: Path) -> None:
    write_folder(MODELS[model](False), tmp_path)
    found = {path.parent.name: sum(element_counts(path).values()) / 1e9 for path in tmp_path.glob("*/*.safetensors")}
    assert found == {name: pytest.approx(size, rel=0.01) for name, size in billions.items()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_a_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "--device cuda:0: torch finds no CUDA device" in capsys.readouterr().err


def test_wheels_that_are_carried_are_the_versions_of_the_environment() -> None:
    pinned = set((ROOT / "constraints.txt").read_text().split())
    carried = [line for line in (ROOT / "benchmarks/gpu/wheels.txt").read_text().splitlines() if line[:1] != "#"]
    assert carried
    assert set(carried) <= pinned
