"""Weights that come and go: the same pictures to the bit, no more on the device than was said, and nothing left over.

On a processor, where they come from host memory into host memory; what is away holds NaN, so that a layer which
computes with it spoils the picture. The order of copies on a device is tried with streams and events that are not real.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image
from torch.nn import Linear, Module, ModuleList

from stage_server.command_line import InvalidSettings
from stage_server.engine import offloading
from stage_server.engine.base import HandOver, LoadError, StageJob, Unfinished, Unwatched
from stage_server.engine.checkpoint import BUNDLED
from stage_server.engine.compiled import Compiler
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.leaves import nbytes
from stage_server.engine.offloading import Offloaded, held, split, true_bytes
from stage_server.engine.weight_cache import HostCopy
from stage_server.offload import Offload
from stage_server.profiling.memory import run
from stage_server.settings import Settings, read_settings
from stage_server.step_caches import parse_levels
from stage_server.weight_formats import WeightFormat
from tests import quantize
from tests.loras import lora, write
from wire.params import AdapterUse, ImageParams
from wire.types import REQUIRED, Role
from wire.values import Tensor

Generate = Callable[..., Image.Image]

ALL = frozenset(REQUIRED)
DIT = frozenset({Role.DIT})
PARAMS = ImageParams(prompt="a red circle", width=64, height=64, num_inference_steps=4, guidance_scale=3.0, seed=5)
EVERYTHING = ("text_encoder", "transformer", "vae")


class Watch:
    """The groups that are on the device now, and the most bytes that were at once."""

    def __init__(self) -> None:
        self.on: set[Any] = set()
        self.came = 0
        self.most = self.most_groups = 0

    def note(self, group: Any, *, is_on: bool) -> None:
        (self.on.add if is_on else self.on.discard)(group)
        self.came += is_on
        self.most = max(self.most, sum(map(size, self.on)))
        self.most_groups = max(self.most_groups, len(self.on))


def size(group: Any) -> int:
    plain = sum(kept.nbytes for _, kept in group.pairs)
    return plain + sum(true_bytes(whole) for _, _, whole in group.places)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What is away holds NaN."""
    seen, group = Watch(), offloading._Group
    bring, put_back = group.bring, group.put_back

    def brought(self: Any, fetch: Any) -> None:
        bring(self, fetch)
        seen.note(self, is_on=True)

    def away(self: Any) -> None:
        put_back(self)
        seen.note(self, is_on=False)
        spoil(self)

    monkeypatch.setattr(group, "bring", brought)
    monkeypatch.setattr(group, "put_back", away)
    made = Offloaded.__init__

    def spoilt(self: Offloaded, *given: Any) -> None:
        made(self, *given)
        for each in self._groups:
            spoil(each)

    monkeypatch.setattr(Offloaded, "__init__", spoilt)
    return seen


def spoil(group: Any) -> None:
    for tensor, kept in group.pairs:
        if kept.is_floating_point() and kept.element_size() > 1:
            tensor.data = torch.full_like(kept, torch.nan)


def drawn(generate: Generate, engine: DiffusersEngine, params: ImageParams = PARAMS) -> bytes:
    engine.set_roles(ALL)
    return generate(dict.fromkeys(REQUIRED, engine), params).tobytes()


@pytest.fixture(scope="module")
def plain(generate: Generate) -> bytes:
    return drawn(generate, DiffusersEngine("tiny-shapes"))


@pytest.mark.parametrize("level", [Offload.BLOCK, Offload.LEAF])
def test_pictures_are_the_same_to_the_bit(level: Offload, generate: Generate, plain: bytes, watch: Watch) -> None:
    engine = DiffusersEngine("tiny-shapes", offloads=dict.fromkeys(EVERYTHING, level))
    assert drawn(generate, engine) == plain
    assert not watch.on, "all are away when nothing computes"
    assert watch.came > 100


@pytest.mark.parametrize("family", ["flux", "stable-diffusion-xl", "stable-diffusion-3-t5"])
def test_other_families(family: str, model_folder: Callable[[str], str], generate: Generate, watch: Watch) -> None:
    folder = model_folder(family)
    params = msgspec.structs.replace(PARAMS, num_inference_steps=2, guidance_scale=None)
    whole = DiffusersEngine(folder)
    expected = drawn(generate, whole, params)
    modules = [name for name, files in whole._components.files.items() if files.is_module]
    able: dict[Offload, dict[str, Offload]] = {}
    for level in (Offload.BLOCK, Offload.LEAF):
        for name in modules:
            try:
                whole._components.predicted_bytes(name, level=level)
            except LoadError:
                continue
            able.setdefault(level, {})[name] = level
    assert {"vae", modules[0]} & able[Offload.LEAF].keys()
    for offloads in able.values():
        assert drawn(generate, DiffusersEngine(folder, offloads=offloads), params) == expected


@pytest.mark.parametrize("level", [Offload.BLOCK, Offload.LEAF])
@pytest.mark.parametrize("name", EVERYTHING)
def test_no_more_is_on_the_device_than_was_predicted(
    level: Offload, name: str, generate: Generate, watch: Watch
) -> None:
    engine = DiffusersEngine("tiny-shapes", offloads={name: level})
    predicted, whole = engine._components.nbytes(name), DiffusersEngine("tiny-shapes")._components.nbytes(name)
    assert predicted < 0.9 * whole
    drawn(generate, engine)
    assert engine._components.nbytes(name) == pytest.approx(predicted, rel=0.01)
    module = getattr(engine._pipeline, name)
    assert nbytes(module) == pytest.approx(whole, rel=0.01)
    copied = engine._components.copied_bytes(name)
    rest = whole - copied
    assert 0 < watch.most <= predicted - rest + 0.01 * whole
    assert engine.resident_bytes == sum(map(engine._components.nbytes, engine._components.resident))


@pytest.mark.parametrize(
    "form", [WeightFormat.INT8, WeightFormat.FLOAT8, WeightFormat.NF4, WeightFormat.FLOAT8_STORAGE]
)
def test_formats_come_and_go_too(form: WeightFormat, generate: Generate, watch: Watch) -> None:
    quantize.make_importable()
    formats = {"transformer": form}
    expected = drawn(generate, DiffusersEngine("tiny-shapes", formats=formats))
    for level in (Offload.BLOCK, Offload.LEAF):
        engine = DiffusersEngine("tiny-shapes", formats=formats, offloads={"transformer": level})
        predicted = engine.capable()[Role.DIT].weight_bytes
        assert drawn(generate, engine) == expected
        assert engine.capable()[Role.DIT].weight_bytes == pytest.approx(predicted, rel=0.01)
    assert watch.came > 0


def test_step_caches_and_loras_are_as_without(tmp_path: Path, watch: Watch) -> None:
    file = write(tmp_path / "style.safetensors", lora("tiny-shapes", 1))
    options: dict[str, Any] = {
        "adapters": {"style": file},
        "adapter_bytes": 1 << 24,
        "step_caches": parse_levels({"high": "first-block:threshold=0.2", "low": "pyramid", "medium": "taylor"}),
    }
    whole = DiffusersEngine("tiny-shapes", **options)
    use = tuple(AdapterUse(each.name, each.digest, 0.8) for each in whole.describe().adapters)
    jobs = [msgspec.structs.replace(PARAMS, step_cache=level, num_inference_steps=5) for level in ("high", "low")]
    jobs.append(msgspec.structs.replace(PARAMS, adapters=use))
    whole.set_roles(frozenset({Role.ENCODER, Role.DIT}))
    inputs = whole.run(StageJob(Role.ENCODER, PARAMS), {}, Unwatched())[Role.DIT]
    expected = [latents(whole, params, inputs) for params in jobs]
    for level in (Offload.BLOCK, Offload.LEAF):
        engine = DiffusersEngine("tiny-shapes", offloads={"transformer": level}, **options)
        engine.set_roles(DIT)
        assert [latents(engine, params, inputs) for params in jobs] == expected
    assert len(set(expected)) == len(jobs)


def latents(engine: DiffusersEngine, params: ImageParams, inputs: Any, **job: Any) -> bytes:
    value = engine.run(StageJob(Role.DIT, params, **job), inputs, Unwatched())[Role.DECODER]["latents"]
    assert isinstance(value, Tensor)
    return bytes(value.data)


def test_roles_go_and_come_back_from_host_memory(generate: Generate, plain: bytes) -> None:
    offloads = {"transformer": Offload.BLOCK, "vae": Offload.LEAF}
    engine = DiffusersEngine("tiny-shapes", offloads=offloads, weight_cache_bytes=1 << 28)
    assert drawn(generate, engine) == plain
    module = engine._pipeline.transformer
    engine.set_roles(frozenset({Role.ENCODER}))
    assert Role.DIT in engine.warm
    assert not hooks(module)
    assert drawn(generate, engine) == plain
    assert engine._pipeline.transformer is module
    assert len(hooks(module)) == 8, "once for each block, not twice"
    engine.close()
    assert not hooks(module)


def hooks(module: Module) -> list[Any]:
    return [hook for each in module.modules() for hook in each._forward_pre_hooks.values()]


def test_a_job_goes_on_elsewhere_with_and_without() -> None:
    """Weights that come and go change no bit, so such servers are of one model."""
    whole, engine = (
        DiffusersEngine("tiny-shapes"),
        DiffusersEngine("tiny-shapes", offloads={"transformer": Offload.BLOCK}),
    )
    assert whole.describe() == engine.describe()
    assert whole.software == engine.software
    whole.set_roles(DIT)
    engine.set_roles(frozenset({Role.ENCODER, Role.DIT}))
    inputs = engine.run(StageJob(Role.ENCODER, PARAMS), {}, Unwatched())[Role.DIT]

    class LeavesAfterTwo(Unwatched):
        def step_done(self, step: int, steps: int) -> None:
            if step == 2:
                raise HandOver

    with pytest.raises(Unfinished) as left:
        engine.run(StageJob(Role.DIT, PARAMS), inputs, LeavesAfterTwo())
    resumed = latents(whole, PARAMS, inputs, resume=left.value.values)
    assert resumed == latents(whole, PARAMS, inputs)


def test_the_models_file_asks_for_it_and_the_option_goes_before(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED / "tiny-shapes", tmp_path / "tiny-shapes"))
    plain = DiffusersEngine(str(folder))
    serving = json.loads((folder / "serving.json").read_text())
    (folder / "serving.json").write_text(json.dumps(serving | {"offload": {"transformer": "block"}}))
    asked = DiffusersEngine(str(folder))
    assert asked.capable()[Role.DIT].weight_bytes < plain.capable()[Role.DIT].weight_bytes
    assert asked.describe().key == plain.describe().key
    back = DiffusersEngine(str(folder), offloads={"transformer": Offload.NONE})
    assert back.capable()[Role.DIT].weight_bytes == plain.capable()[Role.DIT].weight_bytes
    (folder / "serving.json").write_text('{"offload": {"transformer": "layer"}}')
    with pytest.raises(LoadError, match=r"serving.json is not as docs/models.md describes: .*layer"):
        DiffusersEngine(str(folder))


def test_what_excludes_it_is_said_at_the_start() -> None:
    offloads = {"transformer": Offload.BLOCK}
    with pytest.raises(LoadError, match="--offload transformer=block and --compile exclude each other"):
        DiffusersEngine("tiny-shapes", offloads=offloads, compiler=Compiler("eager"))
    with pytest.raises(LoadError, match="no component 'unet' with weights; it has text_encoder, transformer, vae"):
        DiffusersEngine("tiny-shapes", offloads={"unet": Offload.LEAF})
    with pytest.raises(LoadError, match="--offload vae=leaf: it is turned into float32"):
        DiffusersEngine("tiny-shapes", offloads={"vae": Offload.LEAF}, dtype="float16")


def test_nothing_to_save_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "AT_ONCE", 3)  # as many as the text encoder has layers
    engine = DiffusersEngine("tiny-shapes", offloads={"text_encoder": Offload.BLOCK})
    with pytest.raises(
        LoadError, match=r"text_encoder of .* nothing is saved by offloading it by block: .* has 3 such"
    ):
        engine.set_roles(frozenset({Role.ENCODER}))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("transformer=layer", "'layer' is no level of offloading; none, block, leaf are"),
        ("transformer", "'transformer' is no COMPONENT=LEVEL"),
        ("vae=leaf,vae=block", "names a component twice"),
    ],
)
def test_mistakes_in_the_option_are_named(given: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Settings(model="m", role="dit", gateway="tcp://127.0.0.1:1", offload=given)  # type: ignore[arg-type]


def test_an_emulation_has_no_weights_to_offload() -> None:
    given = ["--engine", "emulated", "--profile", "p", "--role", "dit", "--gateway", "tcp://127.0.0.1:1"]
    with pytest.raises(InvalidSettings, match="--offload belongs to --engine diffusers: an emulation has no weights"):
        read_settings([*given, "--offload", "transformer=block"])


def test_what_several_models_have_in_common_is_not_offloaded_for_both() -> None:
    offloads = {"text_encoder": Offload.BLOCK}
    assert "text_encoder" in DiffusersEngine("tiny-shapes")._components.shareable()
    assert "text_encoder" not in DiffusersEngine("tiny-shapes", offloads=offloads)._components.shareable()


def test_memory_tells_what_each_level_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory.json"
    run(["--model", "tiny-shapes", "--offload", "transformer=block", "--device", "cpu", "--output", str(file)])
    told = json.loads(file.read_text())
    assert told["offload"] == {"transformer": "block"}
    assert told["weight_bytes"]["dit"] < 12e6
    assert set(told["copy_seconds"]) == {"dit"}
    assert 5e-4 < told["copy_seconds"]["dit"] < 1.1e-3
    lines = capsys.readouterr().out.splitlines()
    assert sum(" block " in line for line in lines) == 3
    assert any(line.startswith("a call of the dit takes") for line in lines)


# --- the order of copies on a device ----------------------------------------------------------------------------------


class Event:
    """Of a device that does what it is given when somebody waits for it."""

    def __init__(self, *, blocking: bool = False) -> None:
        self.is_recorded = False
        self.waited = 0

    def record(self, _stream: object) -> None:
        self.is_recorded = True

    def synchronize(self) -> None:
        assert self.is_recorded
        self.waited += 1


class Stack(Module):
    """Three blocks and one more, which is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Linear(4, 4)
        self.blocks = ModuleList(Linear(4, 4) for _ in range(4))
        self.order = [0, 1, 2, 3]

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.head(given)
        for index in self.order:
            value = self.blocks[index](value)
        return value


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, watch: Watch) -> Iterator[tuple[Stack, Offloaded]]:
    stream = SimpleNamespace(wait_event=lambda event: event.synchronize())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    module = Stack()
    offloaded = Offloaded(HostCopy(module, 0), Offload.BLOCK, torch.device("cpu"))
    offloaded._stream = object()
    yield module, offloaded
    offloaded.close()


def test_the_next_group_is_copied_while_one_computes(stack: tuple[Stack, Offloaded], watch: Watch) -> None:
    module, _ = stack
    given = torch.randn(2, 4)
    first = module(given)
    assert watch.most_groups <= 2
    assert watch.came == 4
    seen: list[int] = []
    for block in module.blocks:
        block.register_forward_pre_hook(lambda *_: seen.append(len(watch.on)))
    assert torch.equal(module(given), first)
    assert watch.most_groups == 2
    assert torch.isfinite(first).all()
    assert watch.came == 4 + 4 + 1, "each once, and the first one again, for the next call"


def test_another_order_than_the_last_time_is_right_too(stack: tuple[Stack, Offloaded], watch: Watch) -> None:
    module, _ = stack
    given = torch.randn(2, 4)
    results: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [0, 2], [1, 1, 3], [0, 1, 2, 3]):
        module.order = order
        results.setdefault(tuple(order), []).append(module(given))
        assert torch.isfinite(results[tuple(order)][-1]).all()
    assert torch.equal(*results[0, 1, 2, 3])
    assert watch.most_groups == 2


def test_a_call_that_fails_leaves_no_group_too_many(stack: tuple[Stack, Offloaded], watch: Watch) -> None:
    module, _ = stack
    given = torch.randn(2, 4)
    expected = module(given)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            module.blocks[1](torch.randn(2, 3))
    assert torch.equal(module(given), expected)
    assert watch.most_groups == 2


def test_what_came_is_held_until_nothing_reads_it(stack: tuple[Stack, Offloaded]) -> None:
    """Of weights that are cast for each call, as in the format float8-storage."""
    module, _ = stack
    block, came = module.blocks[0], list[int]()

    def cast(*_: object) -> None:
        came.append(block.weight.data_ptr())
        block.weight.data = block.weight.data.double().float()

    block.register_forward_pre_hook(cast)
    module.order = [0]
    module(torch.randn(2, 4))
    assert [block.weight.data_ptr()] == came, "else its memory is free while the device may yet read it"


def test_what_two_layers_share_stays(watch: Watch) -> None:
    module = Stack()
    module.blocks[2].weight = module.blocks[0].weight
    parts = split(module, Offload.LEAF)
    resting = {id(tensor) for tensor in parts.rest}
    assert id(module.blocks[0].weight) in resting
    assert id(module.head.weight) in resting, "a module is asked for its device, and looks at its first weight"
    biases, weights = 5 * 4, 2 * 16
    assert held(parts, true_bytes).copied == (biases + weights) * 4


def test_a_layer_that_two_blocks_have_stays() -> None:
    module, common = Stack(), Linear(4, 4)
    module.blocks = ModuleList(torch.nn.Sequential(Linear(4, 4), common) for _ in range(4))
    parts = split(module, Offload.BLOCK)
    assert {id(common.weight), id(common.bias)} <= {id(tensor) for tensor in parts.rest}
    assert [len(members) for _, members in parts.groups] == [2] * 4
