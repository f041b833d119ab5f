"""What only a CUDA device can show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.params import ImageParams
from wire.types import Role

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_copies_keep_values_and_layout() -> None:
    from stage_server.engine.staging import CudaStaging

    staging = CudaStaging(torch.device("cuda:0"))
    tensor = torch.randn(1, 4, 32, 32).to(memory_format=torch.channels_last)
    moved = staging.to_device(tensor.contiguous())
    assert moved.device.type == "cuda"
    back = staging.to_host(moved.to(memory_format=torch.channels_last))
    assert back.is_pinned()
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride()


def test_three_roles_on_a_device_draw_a_picture_twice_alike(generate: Callable[..., Image.Image]) -> None:
    engine = DiffusersEngine("tiny-shapes", device="cuda:0", dtype="bfloat16")
    engine.set_roles(frozenset(Role))
    params = ImageParams(prompt="a red circle", width=128, height=128, num_inference_steps=4, seed=3)
    first, second = (generate(dict.fromkeys(Role, engine), params).tobytes() for _ in range(2))
    assert first == second
    assert engine.peak_bytes() > 0
    engine.close()
