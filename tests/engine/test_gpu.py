"""What only a CUDA device can show."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import msgspec
import pytest
import torch
from diffusers import ModularPipeline
from PIL import Image

from stage_server.data.pool import BufferPool
from stage_server.engine.checkpoint import BUNDLED
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.leaves import leaves, nbytes, tensors
from stage_server.engine.staging import CudaStaging
from stage_server.offload import Offload
from stage_server.weight_formats import WeightFormat
from tests import quantize
from tests.engine.both_ways import PROMPT, made_by_whole
from tests.engine.test_bit_for_bit import GUIDED, UNGUIDED
from tests.loras import lora, write
from wire.params import AdapterUse, ImageParams
from wire.types import REQUIRED, Role

DEVICE = "cuda:0"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_copies_keep_values_and_layout() -> None:
    staging = CudaStaging(torch.device(DEVICE))
    tensor = torch.randn(1, 4, 32, 32).to(memory_format=torch.channels_last)
    moved = staging.to_device(tensor.contiguous())
    assert moved.device.type == "cuda"
    back = staging.to_host(moved.to(memory_format=torch.channels_last))
    assert back.is_pinned()
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride()


def busy() -> torch.cuda.Event:
    """The device has seconds of work before it; the mark behind that."""
    torch.cuda._sleep(4_000_000_000)  # type: ignore[no-untyped-call]
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def test_inputs_arrive_while_the_device_computes() -> None:
    staging = CudaStaging(torch.device(DEVICE))
    tensor = torch.randn(1 << 20)
    work = busy()
    arriving = staging.arriving()
    moved = arriving.to_device(tensor)
    arriving.landed()
    assert not work.query(), "the copy waited for what computes"
    work.synchronize()
    assert torch.equal(moved.cpu(), tensor)


def test_outputs_leave_while_the_next_job_computes() -> None:
    staging = CudaStaging(torch.device(DEVICE))
    made = torch.randn(1 << 20, device=DEVICE) * 2
    leaving = staging.leaving()
    host = leaving.to_host(made)
    leaving.computed()
    expected = made.cpu()
    work = busy()
    leaving.landed()
    assert not work.query(), "the copy waited for what computes"
    assert host.is_pinned()
    assert torch.equal(host, expected)
    work.synchronize()


def test_fetched_inputs_lie_in_pinned_memory() -> None:
    lease = BufferPool(CudaStaging(torch.device(DEVICE)).host_buffer)(100_000)
    tensor = torch.frombuffer(lease, dtype=torch.uint8)
    assert tensor.is_pinned()
    assert tensor.pin_memory().data_ptr() == tensor.data_ptr()


def test_three_roles_on_a_device_draw_a_picture_twice_alike(generate: Callable[..., Image.Image]) -> None:
    engine = DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16")
    engine.set_roles(frozenset(REQUIRED))
    params = ImageParams(prompt="a red circle", width=128, height=128, num_inference_steps=4, seed=3)
    first, second = (generate(dict.fromkeys(REQUIRED, engine), params).tobytes() for _ in range(2))
    assert first == second
    assert engine.peak_bytes() > 0
    engine.close()


def test_split_equals_monolith_in_bfloat16(generate: Callable[..., Image.Image]) -> None:
    engines = {role: DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16") for role in REQUIRED}
    for role, engine in engines.items():
        engine.set_roles(frozenset({role}))
    pipeline = ModularPipeline.from_pretrained(str(BUNDLED / "tiny-shapes"))
    pipeline.load_components(dtype=torch.bfloat16)
    pipeline.to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    for guidance in (GUIDED, UNGUIDED):
        params = ImageParams(prompt=PROMPT, width=256, height=192, num_inference_steps=6, seed=5, **guidance)
        theirs = made_by_whole(pipeline, params, {})
        assert len(set(theirs.tobytes())) > 10
        assert generate(engines, params).tobytes() == theirs.tobytes()
    for engine in engines.values():
        engine.close()


class Turns:
    """Seconds of each turn at the device."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        began = perf_counter()
        yield
        torch.cuda.synchronize()
        self.seconds.append(perf_counter() - began)


def test_a_role_in_host_memory_comes_without_its_files_and_draws_the_same(
    generate: Callable[..., Image.Image],
) -> None:
    engine = DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16", weight_cache_bytes=1 << 30)
    params = ImageParams(prompt=PROMPT, width=64, height=64, num_inference_steps=2)
    engine.set_roles(frozenset(REQUIRED))
    before = generate(dict.fromkeys(REQUIRED, engine), params)
    kept = frozenset({Role.ENCODER, Role.DECODER})
    engine.set_roles(kept)
    assert engine.warm == {Role.DIT}
    components = engine._components
    assert all(weight.is_pinned() for _, weight in components.cache.get(components._kept_as("transformer")).tensors)
    turns = Turns()
    engine.set_roles(frozenset(REQUIRED), turns)
    assert len(turns.seconds) == 2  # a tiny job, and the swap
    assert generate(dict.fromkeys(REQUIRED, engine), params).tobytes() == before.tobytes()
    engine.close()


def test_roles_given_up_leave_the_device() -> None:
    before = torch.cuda.memory_allocated(DEVICE)
    engine = DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16")
    engine.set_roles(frozenset(REQUIRED))
    held = torch.cuda.memory_allocated(DEVICE) - before
    weights = sum(info.weight_bytes for info in engine.capable().values())
    assert held >= 0.9 * weights
    engine.set_roles(frozenset())
    gc.collect()
    assert torch.cuda.memory_allocated(DEVICE) - before < 0.2 * weights


@pytest.mark.parametrize("form", [form for form in WeightFormat if form is not WeightFormat.NONE])
def test_quantised_weights_take_what_was_predicted(form: WeightFormat) -> None:
    """Of the device, and again after they have been away."""
    quantize.make_importable()
    engine = DiffusersEngine(
        "tiny-shapes", device=DEVICE, dtype="bfloat16", formats={"transformer": form}, weight_cache_bytes=1 << 28
    )
    predicted = engine.capable()[Role.DIT].weight_bytes
    for _ in range(2):
        engine.set_roles(frozenset({Role.DIT}))
        module = engine._pipeline.transformer
        assert nbytes(module) == pytest.approx(predicted, rel=0.05)
        found = [leaf for tensor in tensors(module) for leaf in leaves(tensor)]
        assert {leaf.device.type for leaf in found if leaf.numel() > 1} == {"cuda"}
        engine.set_roles(frozenset())


@pytest.mark.parametrize("level", [Offload.BLOCK, Offload.LEAF])
def test_offloaded_weights_take_what_was_predicted_and_draw_the_same(
    level: Offload, generate: Callable[..., Image.Image]
) -> None:
    """With streams: a group is copied while another one computes."""
    params = ImageParams(prompt=PROMPT, width=128, height=128, num_inference_steps=4, seed=3)
    whole = DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16")
    whole.set_roles(frozenset(REQUIRED))
    expected = generate(dict.fromkeys(REQUIRED, whole), params).tobytes()
    whole.close()
    gc.collect()
    before = torch.cuda.memory_allocated(DEVICE)
    offloads = dict.fromkeys(("text_encoder", "transformer", "vae"), level)
    engine = DiffusersEngine("tiny-shapes", device=DEVICE, dtype="bfloat16", offloads=offloads)
    predicted = sum(info.weight_bytes for info in engine.capable().values())
    for _ in range(2):
        engine.set_roles(frozenset(REQUIRED))
        for _ in range(2):  # the first shows in which order layers are called
            assert generate(dict.fromkeys(REQUIRED, engine), params).tobytes() == expected
        taken = engine.resident_bytes
        assert taken == pytest.approx(predicted - engine._components.nbytes("vae"), rel=0.05)  # two roles need it
        assert torch.cuda.memory_allocated(DEVICE) - before < 1.2 * taken + (1 << 20)
        engine.set_roles(frozenset())
    engine.close()


def test_offloaded_weights_with_formats_loras_and_step_caches(
    generate: Callable[..., Image.Image], tmp_path: Path
) -> None:
    quantize.make_importable()
    file = write(tmp_path / "style.safetensors", lora("tiny-shapes", 1))
    for form in (WeightFormat.INT8, WeightFormat.NF4, WeightFormat.FLOAT8_STORAGE):
        pictures = []
        for offloads in (dict[str, Offload](), {"transformer": Offload.BLOCK}):
            engine = DiffusersEngine(
                "tiny-shapes",
                device=DEVICE,
                dtype="bfloat16",
                formats={"transformer": form},
                offloads=offloads,
                adapters={"style": file},
                adapter_bytes=1 << 24,
            )
            engine.set_roles(frozenset(REQUIRED))
            use = tuple(AdapterUse(each.name, each.digest, 0.8) for each in engine.describe().adapters)
            plain = ImageParams(prompt=PROMPT, width=64, height=64, num_inference_steps=6, seed=3)
            jobs = [msgspec.structs.replace(plain, step_cache="high"), msgspec.structs.replace(plain, adapters=use)]
            pictures.append([generate(dict.fromkeys(REQUIRED, engine), job).tobytes() for job in jobs])
            engine.close()
        assert pictures[0] == pictures[1], form
