"""What only a CUDA device can show."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from diffusers import ModularPipeline
from PIL import Image

from stage_server.engine.checkpoint import BUNDLED
from stage_server.engine.diffusers_engine import DiffusersEngine
from tests.engine.test_bit_for_bit import GUIDED, PROMPT, UNGUIDED, reference
from wire.params import ImageParams
from wire.types import Role

DEVICE = "cuda:0"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_copies_keep_values_and_layout() -> None:
    from stage_server.engine.staging import CudaStaging

    staging = CudaStaging(torch.device(DEVICE))
    tensor = torch.randn(1, 4, 32, 32).to(memory_format=torch.channels_last)
    moved = staging.to_device(tensor.contiguous())
    assert moved.device.type == "cuda"
    back = staging.to_host(moved.to(memory_format=torch.channels_last))
    assert back.is_pinned()
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride()


def test_three_roles_on_a_device_draw_a_picture_twice_alike(generate: Callable[..., Image.Image]) -> None:
    engine = DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16")
    engine.set_roles(frozenset(Role))
    params = ImageParams(prompt="a red circle", width=128, height=128, num_inference_steps=4, seed=3)
    first, second = (generate(dict.fromkeys(Role, engine), params).tobytes() for _ in range(2))
    assert first == second
    assert engine.peak_bytes() > 0
    engine.close()


def test_split_equals_monolith_in_bfloat16(generate: Callable[..., Image.Image]) -> None:
    engines = {role: DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16") for role in Role}
    for role, engine in engines.items():
        engine.set_roles(frozenset({role}))
    pipeline = ModularPipeline.from_pretrained(str(BUNDLED / "tiny-shapes"))
    pipeline.load_components(dtype=torch.bfloat16)
    pipeline.to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    for guidance in (GUIDED, UNGUIDED):
        params = ImageParams(prompt=PROMPT, width=256, height=192, num_inference_steps=6, seed=5, **guidance)
        theirs = reference(pipeline, params, {})
        assert len(set(theirs.tobytes())) > 10
        assert generate(engines, params).tobytes() == theirs.tobytes()
    for engine in engines.values():
        engine.close()


def test_roles_given_up_leave_the_device() -> None:
    before = torch.cuda.memory_allocated(DEVICE)
    engine = DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16")
    engine.set_roles(frozenset(Role))
    held = torch.cuda.memory_allocated(DEVICE) - before
    weights = sum(info.weight_bytes for info in engine.capable().values())
    assert held >= 0.9 * weights
    engine.set_roles(frozenset())
    gc.collect()
    assert torch.cuda.memory_allocated(DEVICE) - before < 0.2 * weights
