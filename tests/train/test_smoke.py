"""The training runs from end to end and leaves a folder that diffusers loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ModularPipeline, ZImagePipeline
from safetensors.torch import load_file

from examples.train_tiny_shapes.__main__ import Workshop
from examples.train_tiny_shapes.plan import FULL, SMOKE, Budget

ROOT = Path(__file__).parents[2]


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.train_tiny_shapes", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("training")
    done = train("all", "--out", str(out), "--smoke", "--threads", "1")
    assert done.returncode == 0, done.stderr
    return out / "model"


@pytest.mark.services
def test_the_plain_pipeline_draws(model: Path) -> None:
    pipeline = ZImagePipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline("a red star on white", height=64, width=96, num_inference_steps=1, guidance_scale=3).images
    assert pictures[0].size == (96, 64)


@pytest.mark.services
def test_the_modular_pipeline_loads(model: Path) -> None:
    pipeline = ModularPipeline.from_pretrained(str(model))
    pipeline.load_components(dtype=torch.float32)
    assert pipeline.transformer.config.in_channels == pipeline.vae.config.latent_channels == 16
    assert pipeline.text_encoder.config.vocab_size == len(pipeline.tokenizer)


@pytest.mark.services
def test_weights_are_bfloat16_and_know_nothing_of_where_they_were_made(model: Path) -> None:
    weights = list(model.rglob("*.safetensors"))
    assert [path.parent.name for path in sorted(weights)] == ["text_encoder", "transformer", "vae"]
    assert all({tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16} for path in weights)
    assert not [path for path in model.rglob("*.json") if str(model.parent) in path.read_text()]
    assert sum(path.stat().st_size for path in model.rglob("*")) < 20e6


def test_a_step_names_the_one_that_it_waits_for(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no 'vae' yet; run that step first"):
        Workshop(tmp_path, SMOKE).latents()


def test_minutes_scale_every_budget() -> None:
    plan = FULL.within(FULL.seconds / 2)
    assert (plan.vae8.budget, plan.inner.budget, plan.first.budget) == (Budget(500), Budget(120), Budget(2250))


def test_a_budget_must_allow_something() -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        Budget(10, steps=0)


def test_the_sizes_follow_the_progress() -> None:
    mixes = [FULL.first.mix(progress) for progress in (0, 0.34, 0.35, 0.99)]
    assert mixes[0] == mixes[1] != mixes[2] == mixes[3]
    assert (1024, 1536) in FULL.first.sizes
