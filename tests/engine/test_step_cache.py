"""Denoising that reuses what earlier steps computed: near the exact picture, and never another job's business."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image

from stage_server.engine.base import BadJob, HandOver, LoadError, StageJob, Unfinished, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.stage_task import StageTask
from stage_server.engine.step_cache import CachedDenoisers, own_tree
from stage_server.step_caches import parse, parse_levels
from tests.engine.both_ways import made_by_split, split
from tests.loras import lora, write
from tests.picture_service import quick_model
from wire.guiders import GuiderUse
from wire.params import AdapterUse, ImageParams
from wire.types import Role
from wire.values import Tensor

SIDE = 64
LEVELS = {
    "first-block": "first-block:threshold=0.15",
    "mag": "mag:ratios=1/1/1:start=0.5:most=1",
    "taylor": "taylor:warm-up=4",
    "pyramid": "pyramid",
    "sea": "sea:threshold=0.5",
}
"""Of each hook that the bundled model can have, one that leaves something out."""

DIT = frozenset({Role.DIT})
PARAMS = ImageParams(prompt="a red circle", width=SIDE, height=SIDE, num_inference_steps=8, guidance_scale=3.0, seed=1)


@pytest.fixture(scope="module")
def engine() -> DiffusersEngine:
    engine = DiffusersEngine("tiny-shapes", step_caches=parse_levels(LEVELS))
    engine.set_roles(DIT)
    return engine


@pytest.fixture(scope="module")
def inputs() -> Mapping[str, Any]:
    encoder = DiffusersEngine("tiny-shapes")
    encoder.set_roles(frozenset({Role.ENCODER}))
    return encoder.run(StageJob(Role.ENCODER, PARAMS), {}, Unwatched())[Role.DIT]


Draw = Callable[..., torch.Tensor]


@pytest.fixture
def draw(engine: DiffusersEngine, inputs: Mapping[str, Any]) -> Draw:
    def latents(level: str = "", control: Unwatched | None = None, **params: Any) -> torch.Tensor:
        job = StageJob(Role.DIT, msgspec.structs.replace(PARAMS, step_cache=level, **params))
        value = engine.run(job, inputs, control or Unwatched())[Role.DECODER]["latents"]
        assert isinstance(value, Tensor)
        return torch.frombuffer(bytearray(value.data), dtype=torch.float32)

    return latents


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_computes_less_and_stays_near_the_exact_picture(
    engine: DiffusersEngine, draw: Draw, level: str
) -> None:
    attention = _Counted(engine, "layers.5.attention.to_q")
    exact = draw()
    all_of_them = attention.taken()
    cached = draw(level)
    assert 0 < attention.taken() < all_of_them == 2 * 8
    assert not torch.equal(cached, exact)
    assert (cached - exact).abs().mean() < 0.5 * (draw(seed=2) - exact).abs().mean()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("guest", ["", "taylor"])
def test_jobs_that_interleave_are_those_that_run_alone_to_the_bit(
    draw: Draw, steps: Any, level: str, guest: str
) -> None:
    alone, guest_alone = draw(level), draw(guest, seed=2)
    between: list[torch.Tensor] = []

    def let_in(step: int) -> None:
        if step in (3, 6):
            between.append(draw(guest, seed=2))

    assert torch.equal(draw(level, steps(let_in)), alone)
    assert len(between) == 2
    assert all(torch.equal(each, guest_alone) for each in between)


def test_an_exact_job_in_which_cached_ones_are_let_in_is_the_same(draw: Draw, steps: Any) -> None:
    alone = draw()
    assert torch.equal(draw("", steps(lambda step: draw("pyramid") if step == 4 else None)), alone)


def test_another_number_of_steps_begins_with_nothing(draw: Draw) -> None:
    """MagCache counts steps, and is told of how many."""
    few = draw("mag", num_inference_steps=4)
    draw("mag")
    assert torch.equal(draw("mag", num_inference_steps=4), few)


def test_previews_are_shown_on_the_way(draw: Draw, steps: Any) -> None:
    control = steps()
    assert torch.equal(draw("taylor", control, previews=2), draw("taylor"))
    assert [(each.index, each.step) for each in control.previews] == [(0, 3), (1, 5)]


def test_one_that_is_handed_over_all_the_same_ends(engine: DiffusersEngine, inputs: Any, steps: Any) -> None:
    """As a gateway may ask that knows no step caches. What its steps remember stays behind: the rest differs."""

    def leave(step: int) -> None:
        if step == 5:
            raise HandOver

    params = msgspec.structs.replace(PARAMS, step_cache="first-block")
    with pytest.raises(Unfinished) as left:
        engine.run(StageJob(Role.DIT, params), inputs, steps(leave))
    control = steps()
    engine.run(StageJob(Role.DIT, params, resume=left.value.values), inputs, control)
    assert control.seen == [(step, 8) for step in (6, 7, 8)]


def test_adapters_are_switched_on_in_cached_steps(tmp_path: Path, inputs: Mapping[str, Any]) -> None:
    source = write(tmp_path / "a.safetensors", lora("tiny-shapes", 1))
    engine = DiffusersEngine(
        "tiny-shapes", step_caches={"low": parse("taylor")}, adapters={"a": source}, adapter_bytes=1 << 26
    )
    engine.set_roles(DIT)
    use = AdapterUse("a", engine.describe().adapters[0].digest, 1.0)

    def latents(**params: Any) -> bytes:
        job = StageJob(Role.DIT, msgspec.structs.replace(PARAMS, **params))
        value = engine.run(job, inputs, Unwatched())[Role.DECODER]["latents"]
        assert isinstance(value, Tensor)
        return bytes(value.data)

    made = {latents(), latents(step_cache="low"), latents(adapters=(use,)), latents(adapters=(use,), step_cache="low")}
    assert len(made) == 4


def test_each_call_of_a_step_has_a_tree_of_its_own(engine: DiffusersEngine) -> None:
    """With guidance there are two, and some hooks keep one state for both."""
    module, progress = engine._pipeline.transformer, _At(0)
    job = CachedDenoisers(parse("pyramid"), [module], progress)
    first, second = job.instead(module), job.instead(module)
    progress.done = 1
    assert (job.instead(module), job.instead(module)) == (first, second)
    assert first is not second
    assert job.instead("something else") == "something else"
    assert first.layers[0].attention.to_q is module.layers[0].attention.to_q
    assert not any(hasattr(each, "_diffusers_hook") for each in module.modules())


def test_a_tree_is_not_compiled_where_its_original_is() -> None:
    original = torch.nn.Sequential(torch.nn.Linear(2, 2))
    original._compiled_call_impl = lambda *_: "compiled"  # type: ignore[assignment]
    assert original(torch.zeros(1, 2)) == "compiled"
    double = own_tree(original)
    assert double(torch.zeros(1, 2)).shape == (1, 2)
    assert double[0] is original[0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("family", "text", "why"),
    [
        ("stable-diffusion-xl", "first-block", "it needs 2 repeated blocks or more, and UNet2DConditionModel has 0"),
        ("tiny-shapes", "faster", "it finds no attention in ZImageTransformer2DModel, which has 8 of its kind"),
    ],
)
def test_a_hook_that_the_model_cannot_have_is_named_when_it_is_loaded(
    model_folder: Callable[[str], str], family: str, text: str, why: str
) -> None:
    engine = DiffusersEngine(model_folder(family), step_caches={"low": parse(text)})
    with pytest.raises(LoadError, match=f"step cache low={text}.* cannot be used with this model: {why}"):
        engine.set_roles(DIT)
    assert not engine.roles


@pytest.mark.services
@pytest.mark.parametrize(
    ("family", "works"),
    [
        ("flux", ["first-block", "mag:ratios=1", "taylor", "pyramid", "faster"]),
        ("flux2-klein", ["mag:ratios=1", "taylor", "pyramid", "faster"]),
        ("krea-2", ["taylor", "pyramid", "faster"]),
        ("stable-diffusion-3", ["pyramid", "faster"]),
        ("stable-diffusion-xl", ["pyramid"]),
    ],
)
def test_caches_that_other_families_can_have(model_folder: Callable[[str], str], family: str, works: list[str]) -> None:
    caches = {f"{number}": parse(text) for number, text in enumerate(works)}
    engine = DiffusersEngine(model_folder(family), step_caches=caches)
    engine.set_roles(DIT)
    assert engine.roles == DIT


@pytest.mark.parametrize("guider", ["pag", "slg", "auto"])
def test_after_a_guider_that_changes_layers_it_leaves_no_hook_behind(
    model_folder: Callable[[str], str], guider: str
) -> None:
    engines = split(model_folder("stable-diffusion-xl"), step_caches={"low": parse("pyramid:start=0:end=1")})

    def drawn(**options: Any) -> bytes:
        size = {"width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 3.0}
        made = made_by_split(engines, ImageParams(prompt="a star", seed=3, **size, **options), {})
        assert isinstance(made, Image.Image)
        return made.tobytes()

    exact, cached = drawn(), drawn(step_cache="low")
    drawn(guider=GuiderUse(name=guider, start=0.0, stop=1.0))
    assert drawn(step_cache="low") == cached != exact
    assert drawn() == exact


def test_what_would_compute_every_step_is_refused(model_folder: Callable[[str], str]) -> None:
    engine = DiffusersEngine(model_folder("flux"), step_caches={"low": parse("sea")})
    with pytest.raises(LoadError, match=r"step cache low=sea.*: LookupError: sea needs latents as planes"):
        engine.set_roles(DIT)


def test_levels_are_those_of_the_model_and_of_the_option_which_goes_before(tmp_path: Path) -> None:
    told = {"low": "taylor:interval=2", "high": "taylor:interval=4"}
    folder = quick_model(tmp_path, SIDE, 2, step_caches=told)
    plain = DiffusersEngine(str(folder)).describe()
    assert plain.step_caches == {
        "high": "taylor:interval=4:warm-up=3:order=1",
        "low": "taylor:interval=2:warm-up=3:order=1",
    }
    others = parse_levels({"low": "none", "medium": "pyramid"})
    changed = DiffusersEngine(str(folder), step_caches=others).describe()
    assert list(changed.step_caches) == ["high", "medium"]
    assert changed.key != plain.key
    (folder / "serving.json").write_text(
        json.dumps({**json.loads((folder / "serving.json").read_text()), "step_caches": {}})
    )
    assert DiffusersEngine(str(folder), step_caches=parse_levels(told)).describe().key == plain.key


def test_a_level_that_is_wrong_in_the_folder_or_unknown_to_the_model_is_named(
    tmp_path: Path, engine: DiffusersEngine, draw: Draw
) -> None:
    folder = quick_model(tmp_path, SIDE, 2, step_caches={"low": "taylor:interval=1"})
    with pytest.raises(LoadError, match=r"step_caches in .*serving.json: interval of taylor is a whole number from 2"):
        DiffusersEngine(str(folder))
    known = ", ".join(engine.describe().step_caches)
    with pytest.raises(BadJob, match=f"has no step cache 'ultra'; it has {known}"):
        draw("ultra")


def test_a_role_that_comes_again_tries_no_level_again() -> None:
    tried = list[object]()
    engine = DiffusersEngine("tiny-shapes", step_caches=parse_levels({"low": "pyramid", "high": "taylor:warm-up=4"}))
    compute = engine._trials._compute

    def counted(task: StageTask, pipeline: Any) -> Any:
        tried.append(task.cache)
        return compute(task, pipeline)

    engine._trials._compute = counted
    for _ in range(2):
        engine.set_roles(DIT)
        engine.set_roles(frozenset())
    assert len(tried) == 2 + len(engine.describe().step_caches)
    assert tried.count(None) == 2


class _Counted:
    """Calls of a layer."""

    def __init__(self, engine: DiffusersEngine, name: str) -> None:
        self.calls = 0
        self._handle = engine._pipeline.transformer.get_submodule(name).register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def taken(self) -> int:
        calls, self.calls = self.calls, 0
        return calls


class _At:
    def __init__(self, done: int) -> None:
        self.done = done

    def total(self) -> int:
        return 8

    def sigma(self) -> float | None:
        return None
